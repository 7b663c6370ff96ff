"""The page of a search: one self-contained HTML file with the pictures in it, without scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lit_mmpg.texts import escape_html as escape

WIDTH = 320
"""Width of the pictures, pixels."""
QUALITY = 3
"""Quantiser of the pictures, 1 (best) to 31."""

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2330;--soft:#5d6675;--line:#d9dee6;--panel:#f5f7fa;--mark:#1f6fd1}
@media (prefers-color-scheme:dark){
:root{--bg:#14171d;--fg:#e6e9ef;--soft:#9aa4b4;--line:#333a46;--panel:#1c2129;--mark:#5b9bff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1360px;padding:24px 20px 60px;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0;overflow-wrap:anywhere}
p{max-width:80ch;margin:.4em 0;color:var(--soft)}
ol{list-style:none;padding:0;margin:1.4em 0;display:grid;gap:18px;
grid-template-columns:repeat(auto-fill,minmax(250px,1fr))}
li{background:var(--panel);border:1px solid var(--line);border-radius:8px;overflow:hidden;break-inside:avoid}
img{display:block;width:100%;aspect-ratio:4/3;object-fit:contain;background:#000}
.none{aspect-ratio:4/3;display:grid;place-items:center;color:var(--soft)}
div.text{padding:10px 14px 12px}
b{overflow-wrap:anywhere}
.rank{color:var(--soft);margin-right:.5em}
.bar{height:5px;background:var(--line);border-radius:3px;margin:8px 0 6px}
.bar i{display:block;height:100%;background:var(--mark);border-radius:3px}
small{color:var(--soft);font-variant-numeric:tabular-nums}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.9rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:600px){body{padding:14px 12px 40px}h1{font-size:1.3rem}ol{grid-template-columns:1fr}}
@media print{body{max-width:none;font-size:11pt}}
"""


@dataclass(frozen=True)
class Hit:
    """One clip of the page.

    Attributes:
        name: Name of the file.
        score: Similarity to the query, -1 to 1.
        moment_s: When its best frame is shown, seconds from the start.
        picture: That frame, ``[3, H, W]`` uint8; ``None`` where there is none.
    """

    name: str
    score: float
    moment_s: float
    picture: np.ndarray | None


def search_page(query: str, hits: Sequence[Hit], facts: Sequence[tuple[str, str]]) -> str:
    """The page.

    Args:
        query: What was looked for.
        hits: The clips, best first.
        facts: What else to say, as pairs of a name and a text.
    """
    low, high = min((hit.score for hit in hits), default=0.0), max((hit.score for hit in hits), default=1.0)
    items = [_item(i, hit, (hit.score - low) / (high - low) if high > low else 1.0) for i, hit in enumerate(hits, 1)]
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(query)}</title>"
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>“{escape(query)}”</h1><p>Clips by similarity to these words, most similar first. The picture is the "
        "frame that fits best; the bar runs from the least to the most similar clip shown.</p>"
        f"<ol>{''.join(items)}</ol><dl>{told}</dl></body></html>\n"
    )


def _item(rank: int, hit: Hit, share: float) -> str:
    picture = '<div class="none">no picture</div>'
    if hit.picture is not None:
        data = base64.b64encode(_jpeg(hit.picture)).decode()
        picture = f'<img alt="frame of {escape(hit.name)}" src="data:image/jpeg;base64,{data}">'
    minutes, seconds = divmod(int(hit.moment_s), 60)
    return (
        f'<li>{picture}<div class="text"><span class="rank">{rank}</span><b>{escape(hit.name)}</b>'
        f'<div class="bar"><i style="width:{100 * share:.0f}%"></i></div>'
        f"<small>score {hit.score:.3f} · at {minutes}:{seconds:02d}</small></div></li>"
    )


def _jpeg(picture: np.ndarray) -> bytes:
    """``[3, H, W]`` uint8 RGB as a JPEG file, by the library that decoded it."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture.transpose(1, 2, 0)), format="rgb24")
    codec: Any = av.CodecContext.create("mjpeg", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = frame.width, frame.height, "yuvj420p", Fraction(1)
    codec.qmin = codec.qmax = QUALITY
    return b"".join(
        bytes(packet) for part in (frame.reformat(format="yuvj420p"), None) for packet in codec.encode(part)
    )
