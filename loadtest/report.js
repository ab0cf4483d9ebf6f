// report.js: what came of a run, as text for the terminal and as a page that needs nothing but itself.

const count = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ',');
const age = (p) => (p.looks ? `${p.lag.toFixed(0)} ms` : 'unseen');
const escape = (s) => String(s).replace(/[&<>"]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c]);

// Figures are per record, request or ms: a metric's kind says which.
function figures(metric) {
  const v = metric.values;
  switch (metric.type) {
    case 'counter':
      return `${count(v.count)} (${count(v.rate)}/s)`;
    case 'rate':
      return `${(100 * v.rate).toFixed(2)} %`;
    case 'trend':
      return ['med', 'p(95)', 'p(99)', 'max']
        .map((k) => `${k} ${metric.contains === 'time' ? `${v[k].toFixed(1)} ms` : count(v[k])}`)
        .join('  ');
  }
  return count(v.value);
}

// judged lists the thresholds that can fail: those that only ask for figures of a part are not among them.
function judged(data) {
  const all = [];
  for (const [name, metric] of Object.entries(data.metrics)) {
    for (const [rule, result] of Object.entries(metric.thresholds || {})) {
      if (!/part:/.test(name)) all.push({ name, rule, ok: result.ok, figures: figures(metric) });
    }
  }
  return all;
}

const shown = (data) => Object.keys(data.metrics).filter((name) => !/part:|run_mark/.test(name)).sort();

function verdict(report) {
  const lost = report.accepted - report.stored;
  if (!report.accepted) return 'Nothing was accepted.';
  if (lost === 0) return `Stored is accepted: ${count(report.accepted)} records.`;
  return lost > 0 ? `Not stored: ${count(lost)} of ${count(report.accepted)} accepted records.` : `Stored beyond the ${count(report.accepted)} accepted records: ${count(-lost)}.`;
}

function breakpoint(report) {
  if (!report.breakpoint) return '';
  const at = `${count(report.breakpoint.records_per_second)} records/s`;
  return report.breakpoint.reached ? `The most that was held: ${at}.` : `Not reached: ${at} were held.`;
}

export function text(report, data) {
  const lines = ['', `  ${report.scenario}: ${verdict(report)} ${breakpoint(report)}`, ''];
  if (report.parts.length) {
    lines.push(`    part     offered/s  accepted/s  failed  request p95     visible p90${report.breakpoint ? '  holds' : ''}`);
    for (const p of report.parts) {
      lines.push(`    ${p.part.padEnd(8)}${count(p.offered).padStart(10)}${count(p.accepted).padStart(12)}${(100 * p.failed).toFixed(1).padStart(6)} %` +
        `${p.latency.toFixed(0).padStart(10)} ms${age(p).padStart(16)}${report.breakpoint ? `  ${p.holds ? 'yes' : 'no'}` : ''}`);
    }
    lines.push('');
  }
  for (const t of judged(data)) lines.push(`  ${t.ok ? 'ok  ' : 'FAIL'} ${t.name} ${t.rule}: ${t.figures}`);
  lines.push('');
  for (const name of shown(data)) lines.push(`    ${name.padEnd(34)} ${figures(data.metrics[name])}`);
  return `${lines.join('\n')}\n`;
}

export function html(report, data) {
  const most = Math.max(1, ...report.parts.map((p) => p.offered));
  const bar = (n, color) => `<div style="background:${color};width:${((100 * n) / most).toFixed(1)}%">${count(n)}</div>`;
  const parts = report.parts.map((p) => `<tr><td>${escape(p.part)}<td class=bars>${bar(p.offered, '#9db8d9')}${bar(p.accepted, '#5a9e6f')}` +
    `<td>${(100 * p.failed).toFixed(1)} %<td>${p.latency.toFixed(0)} ms<td>${age(p)}${report.breakpoint ? `<td>${p.holds ? 'yes' : 'no'}` : ''}`).join('\n');
  const settings = Object.entries(report.settings).filter(([, v]) => v !== undefined).map(([k, v]) => `${k} ${v}`).join(', ');
  return `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Millrace load test: ${escape(report.scenario)}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 1em 0 } td, th { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top }
.bars { width: 45% } .bars div { white-space: nowrap; padding: 0 .3em; margin: 1px 0 } .fail { color: #b00020; font-weight: 600 }
@media (prefers-color-scheme: dark) { body { background: #16191d; color: #ddd } td, th { border-color: #333 } .bars div { color: #111 } .fail { color: #ff8a80 } }
</style>
<h1>${escape(report.scenario)}</h1>
<p class="${report.accepted > 0 && report.accepted === report.stored ? '' : 'fail'}">${escape(verdict(report))} ${escape(breakpoint(report))}
<p>${escape(settings)}. ${escape(new Date().toISOString())}
${parts && `<table><tr><th>part<th>records/s: offered, accepted<th>failed<th>request p95<th>visible p90${report.breakpoint ? '<th>holds' : ''}\n${parts}</table>`}
<h2>Thresholds</h2>
<table>${judged(data).map((t) => `<tr class="${t.ok ? '' : 'fail'}"><td>${t.ok ? 'ok' : 'fail'}<td>${escape(t.name)}<td>${escape(t.rule)}<td>${escape(t.figures)}`).join('\n')}</table>
<h2>Figures</h2>
<table>${shown(data).map((name) => `<tr><td>${escape(name)}<td>${escape(figures(data.metrics[name]))}`).join('\n')}</table>
`;
}
