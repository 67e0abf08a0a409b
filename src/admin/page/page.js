// Asks /status once a second and shows it. Text goes in as text, never as markup.
"use strict";

const POINTS_MAX = 120;
const WIDTH = 400;
const HEIGHT = 150;
const LEFT = 54;
const BOTTOM = 130;

const byId = (id) => document.getElementById(id);
const number = (value) =>
  value === null || value === undefined ? "–"
    : value >= 100 || value === 0 ? Math.round(value).toLocaleString("en")
    : value.toLocaleString("en", { maximumSignificantDigits: 3 });
const percent = (value) => (value === null || value === undefined ? "–" : `${number(value * 100)} %`);
const millis = (value) => (value === null || value === undefined ? "–" : `${number(value)} ms`);
const bytes = (value) => (value === null || value === undefined ? "–" : `${number(value / 1048576)} MiB`);

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => whole >= size);
  if (first < 0) return "0 s";
  const [size, unit] = parts[first];
  const rest = parts[first + 1];
  const further = rest ? Math.floor((whole % size) / rest[0]) : 0;
  return `${Math.floor(whole / size)} ${unit}${further ? ` ${further} ${rest[1]}` : ""}`;
}

// Each plot: its curves, how to write a value, and a line that must not be crossed.
const shareOf = (part) => (point) => {
  const all = point.hit + point.stale + point.joined + point.fetched;
  return all > 0 ? (100 * part(point)) / all : null;
};
const PLOTS = [
  { id: "requests", title: "Requests a second", write: number,
    curves: [["ok", (p) => p.ok], ["failed", (p) => p.failed], ["refused", (p) => p.refused]] },
  { id: "latency", title: "Latency of the last 10 s", write: millis,
    curves: [["p50", (p) => p.p50_ms], ["p90", (p) => p.p90_ms], ["p99", (p) => p.p99_ms]] },
  { id: "pairs", title: "Pairs by source", write: (value) => percent(value === null ? null : value / 100), top: 100,
    curves: [["hit", shareOf((p) => p.hit)], ["fetched", shareOf((p) => p.fetched)],
      ["joined", shareOf((p) => p.joined)], ["stale", shareOf((p) => p.stale)]] },
  { id: "calls", title: "Calls to Chat a second", write: number,
    curves: [["ok", (p) => p.calls_ok], ["failed", (p) => p.calls_failed]] },
  { id: "quota-use", title: "Quota in use", write: (value) => percent(value / 100), top: 110, limit: 100,
    curves: [["of the limit", (p) => 100 * p.quota_use]] },
  { id: "queue", title: "Pairs and calls that wait", write: number, curves: [["waiting", (p) => p.queued]] },
];

function make(name, attributes = {}, ...children) {
  const inSvg = ["svg", "path", "line", "text", "title", "desc"].includes(name);
  const element = inSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function makePlot(plot) {
  const title = make("title", { id: `${plot.id}-title` }, plot.title);
  const desc = make("desc", { id: `${plot.id}-desc` });
  plot.desc = desc;
  plot.scale = [0, 0.5, 1].map((part) => ({
    part,
    line: make("line", { class: "grid", x1: LEFT, x2: WIDTH }),
    label: make("text", { class: "axis", x: LEFT - 6, "text-anchor": "end" }),
  }));
  plot.limitLine = make("line", { class: "limit", x1: LEFT, x2: WIDTH, visibility: "hidden" });
  plot.paths = plot.curves.map((_, at) => make("path", { class: `curve c${at}` }));
  plot.values = plot.curves.map(() => make("dd"));
  const axis = [[LEFT, "start", "2 min ago"], [WIDTH, "end", "now"]].map(([x, anchor, text]) =>
    make("text", { class: "axis", x, y: HEIGHT - 4, "text-anchor": anchor }, text));
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-labelledby": `${plot.id}-title`, "aria-describedby": `${plot.id}-desc` }, title, desc,
    ...plot.scale.flatMap(({ line, label }) => [line, label]), plot.limitLine, ...plot.paths, ...axis);
  const legend = make("dl", { class: "legend" }, ...plot.curves.map(([name], at) => make("div", {},
    make("svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, make("path", { class: `curve c${at}`, d: "M0 4H22" })),
    make("dt", {}, name), plot.values[at])));
  return make("figure", { id: `plot-${plot.id}` }, make("figcaption", {}, plot.title), svg, legend);
}

// The next of 1, 2, 5, 10, ... that is not below.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

function drawPlot(plot, points) {
  const largest = Math.max(0, ...plot.curves.flatMap(([, value]) => points.map((point) => value(point) ?? 0)));
  const top = Math.max(plot.top ?? 0, largest > 0 ? roundUp(largest) : 1);
  const last = points.at(-1);
  const x = (point) => WIDTH - ((last.at - point.at) * (WIDTH - LEFT)) / (POINTS_MAX - 1);
  const y = (value) => BOTTOM - (value / top) * (BOTTOM - 10);
  // Where there is a limit, the scale is that of the limit and not of the little that is left above it.
  const mark = plot.limit && top === plot.top ? plot.limit : top;
  for (const { part, line, label } of plot.scale) {
    const at = y(part * mark);
    for (const end of ["y1", "y2"]) line.setAttribute(end, at.toFixed(1));
    label.setAttribute("y", (at + 4).toFixed(1));
    label.textContent = plot.write(part * mark);
  }
  if (plot.limit) {
    plot.limitLine.setAttribute("visibility", "visible");
    for (const end of ["y1", "y2"]) plot.limitLine.setAttribute(end, y(plot.limit).toFixed(1));
  }
  const told = plot.curves.map(([name, value], at) => {
    let drawing = "";
    let pen = "M";
    for (const point of points) {
      const now = value(point);
      if (now === null || now === undefined || x(point) < LEFT) { pen = "M"; continue; }
      // A point with no neighbours shows as a dot.
      drawing += `${pen}${x(point).toFixed(1)} ${y(now).toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    }
    plot.paths[at].setAttribute("d", drawing);
    const text = last ? plot.write(value(last)) : "–";
    plot.values[at].textContent = text;
    return `${name} ${text}`;
  });
  plot.desc.textContent = `Now: ${told.join(", ")}. Largest in two minutes: ${plot.write(largest)}.`;
}

function fillRows(table, rows) {
  const body = table.tBodies[0];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, at) => {
    const row = body.rows[at] ?? body.insertRow();
    cells.forEach(([content, style], column) => {
      if (!row.cells[column]) row.append(make(column === 0 ? "th" : "td", column === 0 ? { scope: "row" } : {}));
      const cell = row.cells[column];
      if (content instanceof Node) cell.replaceChildren(content);
      else if (cell.textContent !== content) cell.textContent = content;
      if (cell.className !== (style ?? "")) cell.className = style ?? "";
    });
  });
}

function fillFacts(list, facts) {
  list.replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

const STATES = {
  primary: ["on its own domain", "good"],
  standby: ["on the standby domain", "warn"],
  parked: ["parked", "bad"],
};

function stateOf(app) {
  const [words, style] = STATES[app.state.is] ?? [app.state.is, "warn"];
  // Its domain serves, only not for every command.
  if (app.state.is === "primary" && app.state.cause) return [`${words}, but some commands are parked: ${app.state.cause}`, "text warn"];
  return [app.state.cause ? `${words}: ${app.state.cause}` : words, `text ${style}`];
}

function appRow(app) {
  const { age_seconds: age, expires_in_seconds: left } = app.signature;
  const now = app.last_second;
  return [[app.name], stateOf(app), [app.region ?? app.endpoint],
    [`${span(age)} old, good for ${span(left)}`, left > 0 ? "" : "bad"],
    [number(now.ok + now.failed + now.refused), "number"], [percent(app.cache.hit_ratio), "number"],
    [number(app.cache.pairs), "number"]];
}

function quotaRow(quota) {
  const used = quota.calls_per_second / quota.limit;
  const meter = make("meter", { min: 0, max: 1, high: 0.9, value: Math.min(1, used),
    "aria-label": `${quota.command}: ${percent(used)} of the limit` });
  const remarks = [];
  if (quota.lowered) remarks.push(`lowered from ${number(quota.configured)}`);
  if (quota.next_permit_seconds >= 0.1) remarks.push(`next call in ${span(quota.next_permit_seconds)}`);
  return [[quota.command], [number(quota.calls_per_second), "number"], [number(quota.limit), "number"], [meter],
    [number(quota.calls_waiting), "number"], [remarks.join(", "), "text"]];
}

function codeRow({ code, count, meaning }) {
  const words = code === "0" ? "success" : meaning;
  return [[code], [number(count), "number"], [words, code === "0" ? "text" : "text warn"]];
}

let points = [];
let shownApp = null;

function say(text, style) {
  const state = byId("state");
  // Screen readers tell every change of it, so it changes only with its text.
  if (state.textContent !== text) state.textContent = text;
  state.className = style;
}

function showProgram(status) {
  byId("version").textContent = status.version;
  const troubled = status.apps.filter((app) => app.state.is !== "primary" || app.state.cause);
  if (!status.ready) say("Not ready: starting or draining", "bad");
  else if (troubled.length) say(`Ready; not as usual: ${troubled.map((app) => app.name).join(", ")}`, "warn");
  else say("Ready", "good");
  const { connections, requests_in_flight: flight, process } = status;
  fillFacts(byId("program"), [["up", span(status.uptime_seconds)],
    ["connections", `${number(connections.now)} of ${number(connections.max)}`],
    ["requests in flight", `${number(flight.now)} of ${number(flight.max)}`],
    ["buffered", `${bytes(status.buffered_bytes.now)} of ${bytes(status.buffered_bytes.max)}`],
    ["memory", bytes(process.resident_bytes)], ["log level", status.log.level ?? "–"],
    ["log lines dropped", number(status.log.lines_dropped)],
    ...(status.fleet ? [["replicas", status.fleet.mode]] : [])]);
}

function showChoice(apps) {
  const choice = byId("app");
  const names = apps.map((app) => app.name);
  if ([...choice.options].map((option) => option.value).join() !== names.join()) {
    choice.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    choice.value = names.includes(shownApp) ? shownApp : (apps.find((app) => app.default) ?? apps[0]).name;
  }
  return apps.find((app) => app.name === choice.value);
}

async function show(status) {
  showProgram(status);
  fillRows(byId("apps"), status.apps.map(appRow));
  const app = showChoice(status.apps);
  if (app.name !== shownApp) {
    points = (await ask(`/status/history/${app.name}`)).points;
    shownApp = app.name;
  }
  const now = app.last_second;
  if (now.at > (points.at(-1)?.at ?? 0)) points = [...points, now].slice(-POINTS_MAX);
  if (points.length) for (const plot of PLOTS) drawPlot(plot, points);
  fillRows(byId("quota"), app.quota.map(quotaRow));
  fillRows(byId("codes"), app.since_start.calls.map(codeRow));
  document.body.dataset.shown = String(now.at);
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
}

let asking = false;

async function refresh() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    await show(await ask("/status"));
  } catch {
    say("No answer from chatgate; these figures are old", "bad");
  }
  asking = false;
}

byId("plots").append(...PLOTS.map(makePlot));
byId("app").addEventListener("change", refresh);
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 1000);
refresh();
