"""How a report looks: light or dark as its reader's system, narrow or wide, and on paper."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c2330; --quiet: #5b6475; --line: #d9dee7;
  --soft: #f4f6f9; --accent: #2458c5; --good: #176b3a; --warm: #b4530a; }
@media (prefers-color-scheme: dark) { :root { --back: #14181f; --text: #e4e8ef; --quiet: #9aa5b8; --line: #303846;
  --soft: #1d232d; --accent: #7ea8ff; --good: #6fd399; --warm: #f2a65a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 3rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1rem; }
p { margin: .4rem 0; }
.quiet { color: var(--quiet); }
.best { margin: 1.2rem 0; padding: .8rem 1rem; border: 1px solid var(--line); border-left: 4px solid var(--good);
  border-radius: 6px; background: var(--soft); }
.best strong { color: var(--good); }
code { padding: .1rem .35rem; border-radius: 4px; background: var(--soft); border: 1px solid var(--line);
  font: .92em ui-monospace, Consolas, monospace; }
.best code { background: var(--back); }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; margin: .4rem 0; }
dt { color: var(--quiet); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 500; }
th, td { overflow-wrap: break-word; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.chosen { background: var(--soft); } tr.chosen td:first-child { font-weight: 600; }
.name { overflow-wrap: anywhere; min-width: 9rem; }
.usual { columns: 2 20rem; column-gap: 2rem; font-size: .86rem; color: var(--quiet); }
.usual p { margin: 0 0 .15rem; break-inside: avoid; } .usual span { color: var(--text); }
.tags { display: flex; flex-wrap: wrap; gap: .3rem; margin: .4rem 0; padding: 0; list-style: none; font-size: .88rem; }
.tags li { padding: .05rem .5rem; border: 1px solid var(--line); border-radius: 1rem; background: var(--soft); }
.tags small { color: var(--quiet); }
figure { margin: .8rem 0; break-inside: avoid; }
figcaption { margin-top: .3rem; color: var(--quiet); font-size: .86rem; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; border: 1px solid var(--line); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font-size: 13px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-linecap: round; stroke-linejoin: round; }
svg .raw { stroke: var(--accent); stroke-opacity: .3; stroke-width: 1; }
svg .smooth { stroke: var(--accent); stroke-width: 2.5; }
svg .validation { stroke: var(--warm); stroke-width: 2; } svg .dot { fill: var(--warm); }
svg .turn { stroke: var(--warm); stroke-width: 1.5; stroke-dasharray: 2 4; }
svg .base { stroke: var(--quiet); stroke-width: 1.5; stroke-dasharray: 6 5; }
.key { display: inline-block; margin-right: 1.1rem; }
.key::before { content: ""; display: inline-block; width: 1.4rem; margin-right: .4rem; vertical-align: .25em;
  border-top: 3px solid; }
.key.raw::before { border-color: var(--accent); opacity: .35; } .key.smooth::before { border-color: var(--accent); }
.key.validation::before { border-color: var(--warm); }
.key.base::before { border-color: var(--quiet); border-top-style: dashed; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
  h1 { font-size: 1.35rem; } svg text { font-size: 26px; } }
@media print { :root { color-scheme: light; --back: #fff; --text: #000; --quiet: #444; --line: #bbb; --soft: #fff;
  --accent: #1a44a0; --good: #0d5128; --warm: #94420a; } body { max-width: none; padding: 0; font-size: 11pt; }
  h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""
