"""The style sheet of all pages, and the script that sorts their tables."""

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2330;--soft:#5d6675;--line:#d9dee6;--panel:#f5f7fa;--link:#1f5fbf;
--good:#14804a;--bad:#b3322d;--open:#8a6100;--even:#7d8798;
--c0:#1f6fd1;--c1:#d98324;--c2:#14935c;--c3:#7b52c7;--c4:#c0392b;--c5:#0e8fa6;--c6:#5f7d1c;--c7:#b8327a}
@media (prefers-color-scheme:dark){:root{--bg:#14171d;--fg:#e6e9ef;--soft:#9aa4b4;--line:#333a46;--panel:#1c2129;
--link:#7fb0ff;--good:#4cc38a;--bad:#ff8078;--open:#e5b454;--even:#8f99aa;
--c0:#5b9bff;--c1:#f0a04b;--c2:#4cc38a;--c3:#a98bf0;--c4:#ff8078;--c5:#52c7dc;--c6:#a9c95b;--c7:#f07bb5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1320px;padding:20px 18px 60px;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:.2em 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2em 0 .4em;border-bottom:1px solid var(--line)}h3{font-size:1rem;margin:1.6em 0 .2em}
p,ul{max-width:80ch;margin:.5em 0;overflow-wrap:break-word}ul{padding-left:1.1em}
.soft,small,dt{color:var(--soft)}a{color:var(--link)}code{font-size:.9em}pre{overflow-x:auto}summary{cursor:pointer}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px 5px 0;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;vertical-align:bottom;min-width:4em}td{white-space:nowrap}
th.text,td.text{text-align:left}td.long{white-space:normal;min-width:16em;max-width:64ch}
td:first-child,th:first-child{position:sticky;left:0;background:var(--bg)}
tr.strong td{font-weight:650}td a{color:inherit;text-decoration:none}td a:hover{text-decoration:underline}
.sorts th{cursor:pointer}.sorts th[aria-sort=ascending]:after{content:" ▲"}.sorts th[aria-sort=descending]:after{
content:" ▼"}
.badge{display:inline-block;border:1px solid;border-radius:9px;padding:0 8px;font-size:.8rem;font-weight:600;
color:var(--soft)}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--open)}
.claims{list-style:none;padding:0;display:grid;gap:10px}
.claims li{background:var(--panel);border-left:4px solid var(--soft);padding:10px 14px;border-radius:3px}
.claims .good{border-color:var(--good)}.claims .bad{border-color:var(--bad)}.claims .open{border-color:var(--open)}
.claims li{color:var(--fg)}.claims b{color:var(--soft)}.claims .good b{color:var(--good)}.claims .bad b{
color:var(--bad)}.claims .open b{color:var(--open)}.claims li div{font-size:.875rem;color:var(--soft)}
.cards{display:flex;flex-wrap:wrap;gap:10px;margin:.8em 0}
.cards div{border:1px solid var(--line);border-radius:8px;padding:8px 14px;min-width:140px}
.cards b{display:block;font-size:1.25rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.9rem}dd{margin:0;overflow-wrap:anywhere}
.gallery{list-style:none;padding:0;max-width:none;display:grid;gap:18px;
grid-template-columns:repeat(auto-fill,minmax(min(250px,100%),1fr))}
.gallery li{background:var(--panel);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.gallery img,.none{display:grid;width:100%;aspect-ratio:4/3;object-fit:contain;background:#000;color:#999;
place-items:center}
.gallery div{padding:10px 14px}.gallery b{overflow-wrap:anywhere}meter{width:100%}
figure{margin:1.2em 0}figcaption{max-width:80ch;color:var(--soft);font-size:.9rem}
svg{overflow:visible;font:12px system-ui,sans-serif}svg text{fill:var(--fg)}
.grid{stroke:var(--line)}.zero{stroke:var(--soft)}.line{fill:none;stroke-width:2}
.front{fill:none;stroke-width:1.5;stroke-dasharray:5 4}.join{stroke:var(--soft)}
.first{text-anchor:start}.middle,.inside{text-anchor:middle}.last{text-anchor:end}.inside{font-size:10px;
pointer-events:none}
.dot{fill:var(--bg);stroke:var(--even);stroke-width:1.5}.dot.strong{stroke:var(--c0);stroke-width:2.5}
.rows{display:grid;grid-auto-flow:dense;grid-template-columns:fit-content(34%) minmax(10em,1fr) fit-content(32%);
gap:6px 12px;
max-width:1100px;margin:.8em 0;font-size:.85rem;line-height:20px}
.rows .label{grid-column:1;overflow-wrap:anywhere}.rows .track{grid-column:2;width:100%;height:20px}.rows .value{
grid-column:3}
.rows .axis{height:34px}.defs{position:absolute}
.xy{display:grid;grid-template-columns:52px 1fr;max-width:760px;margin:.8em 14px 1em 0;font-size:.85rem}
.xy>div:first-child{grid-column:1/3;margin-bottom:10px}.xy svg.y{width:52px;height:260px}.xy svg.area{width:100%;
height:260px}
.xy .x{grid-column:2;text-align:center;margin-top:24px}
.xy ul{grid-column:2;list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px}.xy i{display:inline-block;
width:14px;
height:4px;margin-right:6px;vertical-align:middle}
@media (max-width:600px){body{padding:14px 12px 40px}h1{font-size:1.3rem}dl{grid-template-columns:1fr}dt{
margin-top:.4em}
td:first-child{min-width:8em;max-width:10em;white-space:normal;overflow-wrap:break-word}
.rows{grid-template-columns:1fr auto;gap:2px 10px}.rows .label{grid-column:1}.rows .value{grid-column:2;
text-align:right}
.rows .track{grid-column:1/3;margin-bottom:6px}.rows .track:not(.axis){overflow:hidden}}
@media print{body{max-width:none;font-size:11pt}.scroll{overflow:visible}table{font-size:7.5pt}li,figure{
break-inside:avoid}}
"""
"""The one style sheet: light, dark, narrow and on paper."""

SORT = """
document.querySelectorAll("table").forEach(t=>{const b=t.tBodies[0];if(!b||b.rows.length<2)return;
t.classList.add("sorts");
const v=(r,i)=>{const c=r.cells[i];if(!c)return"";const x=c.dataset.v??c.textContent.trim();
const n=parseFloat(x.replace(/,/g,""));return x===""?-Infinity:isNaN(n)?x:n};
[...t.tHead.rows[0].cells].forEach((h,i)=>h.onclick=()=>{const d=h.ariaSort==="ascending"?-1:1;
[...t.tHead.rows[0].cells].forEach(o=>o.ariaSort=null);h.ariaSort=d>0?"ascending":"descending";
[...b.rows].sort((p,q)=>{const x=v(p,i),y=v(q,i);
return d*(typeof x===typeof y?(x<y?-1:x>y?1:0):typeof x==="number"?-1:1)})
.forEach(r=>b.append(r))})})
"""
"""A click on a heading sorts a table, by exact values where the cells have them."""
