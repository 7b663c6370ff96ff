"""Style sheet of the report: light, dark, narrow and on paper."""

STYLE = """
:root{
  color-scheme:light dark;--bg:#fff;--fg:#1d2330;--soft:#5d6675;--line:#d9dee6;
  --panel:#f5f7fa;--link:#1f5fbf;--good:#14804a;--bad:#b3322d;--open:#8a6100;
  --none:#5d6675;--c0:#8a94a6;--c1:#1f6fd1;--c2:#d98324;--c3:#7b52c7
}
@media (prefers-color-scheme:dark){
  :root{
    --bg:#14171d;--fg:#e6e9ef;--soft:#9aa4b4;--line:#333a46;--panel:#1c2129;
    --link:#7fb0ff;--good:#4cc38a;--bad:#ff8078;--open:#e5b454;--none:#9aa4b4;
    --c0:#7d8798;--c1:#5b9bff;--c2:#f0a04b;--c3:#a98bf0
  }
}
*{box-sizing:border-box}
body{
  margin:0 auto;max-width:1360px;padding:24px 20px 60px;background:var(--bg);color:var(--fg);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif
}
h1{font-size:1.7rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.25rem;margin:2em 0 .4em}
h3{font-size:1rem;margin:1.6em 0 .2em}
p{max-width:75ch;margin:.5em 0}
.soft,small{color:var(--soft)}
a{color:var(--link)}
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th,td{
  padding:5px 10px 5px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top
}
th{color:var(--soft);font-weight:600;vertical-align:bottom}
th.wide{white-space:normal;min-width:4.6em}
td.long{white-space:normal;min-width:16em;max-width:64ch}
td:first-child,th:first-child,.text{text-align:left}
td:first-child,th:first-child{position:sticky;left:0;background:var(--bg)}
tr.strong td{font-weight:650}
td .n{color:var(--soft);font-weight:400;display:inline-block;min-width:1.7em}
td a{color:inherit;text-decoration:none}
td a:hover{text-decoration:underline}
td .ci{color:var(--soft);font-weight:400}
.claims{list-style:none;padding:0;margin:.6em 0;display:grid;gap:10px}
.claims li{
  background:var(--panel);border-left:4px solid var(--none);padding:10px 14px;border-radius:3px;break-inside:avoid
}
.claims b{display:inline-block;margin-right:.6em}
.claims div{font-size:.875rem;color:var(--soft)}
.holds{border-color:var(--good)!important}
.holds b{color:var(--good)}
.fails{border-color:var(--bad)!important}
.fails b{color:var(--bad)}
.undecided{border-color:var(--open)!important}
.undecided b{color:var(--open)}
.untested b{color:var(--none)}
figure{margin:1.2em 0;break-inside:avoid}
figcaption{max-width:75ch;color:var(--soft);font-size:.9rem}
@media (min-width:1320px){.figures{display:grid;grid-template-columns:1fr 1fr;gap:0 28px;align-items:start}}
svg{width:100%;min-width:640px;max-width:900px;height:auto;display:block;font:12px system-ui,sans-serif}
svg text{fill:var(--fg)}
svg .small{font-size:10px;fill:var(--soft)}
svg .axis{stroke:var(--soft)}
svg .grid{stroke:var(--line)}
svg .zero{stroke:var(--fg);stroke-width:1.5}
svg .front{fill:none;stroke:var(--c1);stroke-width:1.5;stroke-dasharray:4 3}
svg .dot{fill:var(--bg);stroke:var(--c0);stroke-width:1.5}
svg .strong{stroke:var(--c1);stroke-width:2.5}
svg .inside{font-size:10px}
svg .bar{stroke-width:3}
svg .bar.better{stroke:var(--good)}
svg .bar.worse{stroke:var(--bad)}
svg .bar.even{stroke:var(--c0)}
svg .mark.better{fill:var(--good)}
svg .mark.worse{fill:var(--bad)}
svg .mark.even{fill:var(--c0)}
ul.plain{padding-left:1.1em;max-width:80ch}
code{font-size:.9em}
wbr{display:none}
@media (max-width:600px){
  body{padding:14px 12px 40px}
  h1{font-size:1.35rem}
  wbr{display:inline}
  td:first-child{min-width:8.5em;max-width:9.5em;white-space:normal;overflow-wrap:break-word}
}
@media print{
  body{max-width:none;font-size:11pt}
  .scroll{overflow:visible}
  .figures{display:block}
  svg{min-width:0}
  td,th{padding-right:7px}
  table{font-size:7.5pt}
  td:first-child,th:first-child{position:static}
  a{color:inherit}
}
"""
