// Fetches /status once a second and shows it. Values are inserted as text, never as markup.
"use strict";

const POINTS_MAX = 120;
const CALLERS_MAX = 50;
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

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const largest = units.findIndex(([size]) => whole >= size);
  if (largest < 0) return "0 s";
  const [size, unit] = units[largest];
  const next = units[largest + 1];
  const rest = next ? Math.floor((whole % size) / next[0]) : 0;
  return `${Math.floor(whole / size)} ${unit}${rest ? ` ${rest} ${next[1]}` : ""}`;
}

const percentOfPairs = (source) => (point) => {
  const all = point.hit + point.stale + point.joined + point.fetched;
  return all > 0 ? (100 * source(point)) / all : null;
};
// Each plot has curves, a format for values, and optionally a top of the scale and a limit to draw.
const PLOTS = [
  { id: "requests", title: "Requests per second", format: number,
    curves: [["ok", (p) => p.ok], ["failed", (p) => p.failed], ["rejected", (p) => p.refused]] },
  { id: "latency", title: "Latency over 10 s", format: millis,
    curves: [["p50", (p) => p.p50_ms], ["p90", (p) => p.p90_ms], ["p99", (p) => p.p99_ms]] },
  { id: "pairs", title: "Pairs by source", format: (value) => percent(value === null ? null : value / 100), top: 100,
    curves: [["hit", percentOfPairs((p) => p.hit)], ["fetched", percentOfPairs((p) => p.fetched)],
      ["joined", percentOfPairs((p) => p.joined)], ["stale", percentOfPairs((p) => p.stale)]] },
  { id: "calls", title: "Calls to Chat per second", format: number,
    curves: [["ok", (p) => p.calls_ok], ["failed", (p) => p.calls_failed]] },
  { id: "quota-use", title: "Quota in use", format: (value) => percent(value / 100), top: 110, limit: 100,
    curves: [["of the limit", (p) => 100 * p.quota_use]] },
  { id: "queue", title: "Queued pairs and calls", format: number, curves: [["queued", (p) => p.queued]] },
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

// Returns the smallest of 1, 2, 5, 10, ... that is not less than the value.
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
  // With a limit, the scale is labeled up to the limit; the space above it has no label.
  const labeledTop = plot.limit && top === plot.top ? plot.limit : top;
  for (const { part, line, label } of plot.scale) {
    const at = y(part * labeledTop);
    for (const end of ["y1", "y2"]) line.setAttribute(end, at.toFixed(1));
    label.setAttribute("y", (at + 4).toFixed(1));
    label.textContent = plot.format(part * labeledTop);
  }
  if (plot.limit) {
    plot.limitLine.setAttribute("visibility", "visible");
    for (const end of ["y1", "y2"]) plot.limitLine.setAttribute(end, y(plot.limit).toFixed(1));
  }
  const descriptions = plot.curves.map(([name, value], at) => {
    let drawing = "";
    let pen = "M";
    for (const point of points) {
      const now = value(point);
      if (now === null || now === undefined || x(point) < LEFT) { pen = "M"; continue; }
      // A point without neighbors is drawn as a dot.
      drawing += `${pen}${x(point).toFixed(1)} ${y(now).toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    }
    plot.paths[at].setAttribute("d", drawing);
    const text = last ? plot.format(value(last)) : "–";
    plot.values[at].textContent = text;
    return `${name} ${text}`;
  });
  plot.desc.textContent = `Now: ${descriptions.join(", ")}. Maximum in two minutes: ${plot.format(largest)}.`;
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

function fillValues(list, values) {
  list.replaceChildren(...values.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

const STATES = {
  primary: ["primary domain", "good"],
  standby: ["standby domain", "warn"],
  parked: ["parked", "bad"],
};

function stateOf(app) {
  const [words, style] = STATES[app.state.is] ?? [app.state.is, "warn"];
  if (app.state.proxy_failure) return [`${words}: ${app.state.proxy_failure}`, "text bad"];
  // The primary domain responds, but some commands are parked.
  if (app.state.is === "primary" && app.state.cause) return [`${words}, but some commands are parked: ${app.state.cause}`, "text warn"];
  return [app.state.cause ? `${words}: ${app.state.cause}` : words, `text ${style}`];
}

function appRow(app) {
  const { age_seconds: age, expires_in_seconds: left } = app.signature;
  const now = app.last_second;
  return [[app.name], stateOf(app), [app.region ?? app.endpoint],
    [`${duration(age)} old, valid for ${duration(left)}`, left > 0 ? "" : "bad"],
    [number(now.ok + now.failed + now.refused), "number"], [percent(app.cache.hit_ratio), "number"],
    [number(app.cache.pairs), "number"]];
}

function quotaRow(quota) {
  const used = quota.calls_per_second / quota.limit;
  const meter = make("meter", { min: 0, max: 1, high: 0.9, value: Math.min(1, used),
    "aria-label": `${quota.command}: ${percent(used)} of the limit` });
  const notes = [];
  if (quota.lowered) notes.push(`lowered from ${number(quota.configured)}`);
  if (quota.next_permit_seconds >= 0.1) notes.push(`next call in ${duration(quota.next_permit_seconds)}`);
  return [[quota.command], [number(quota.calls_per_second), "number"], [number(quota.limit), "number"], [meter],
    [number(quota.calls_waiting), "number"], [notes.join(", "), "text"]];
}

function codeRow({ code, count, meaning }) {
  const words = code === "0" ? "success" : meaning;
  return [[code], [number(count), "number"], [words, code === "0" ? "text" : "text warn"]];
}

// Returns the row of a caller; all is the number of calls of all callers of the app.
function callerRow(caller, all) {
  const { hit, joined, fetched, stale } = caller.pairs;
  const pairs = hit + joined + fetched + stale;
  const share = all > 0 ? caller.calls / all : 0;
  const meter = make("meter", { min: 0, max: 1, value: share, "aria-label": `${caller.name}: ${percent(share)} of the calls` });
  const refused = Object.entries(caller.refused).map(([slug, count]) => `${number(count)} ${slug}`);
  return [[caller.name], [caller.class], [number(caller.calls), "number"], [meter], [number(pairs), "number"],
    [percent(pairs > 0 ? (hit + stale) / pairs : null), "number"], [duration(caller.waited_seconds), "number"],
    [refused.join(", "), refused.length ? "text warn" : "text"]];
}

// With one relation, the table of apps has its values.
function showRelations(relations) {
  const rows = Object.entries(relations).map(([name, { pairs, pairs_cached: cached, hit_ratio: ratio }]) =>
    [[name], [number(pairs.hit + pairs.joined + pairs.fetched + pairs.stale), "number"], [percent(ratio), "number"],
      [number(cached), "number"]]);
  byId("relations-section").hidden = rows.length < 2;
  fillRows(byId("relations"), rows);
}

function showCallers(callers) {
  byId("callers-section").hidden = callers.length === 0;
  const all = callers.reduce((sum, caller) => sum + caller.calls, 0);
  fillRows(byId("callers"), callers.slice(0, CALLERS_MAX).map((caller) => callerRow(caller, all)));
  const rest = callers.length - CALLERS_MAX;
  byId("callers-rest").textContent = rest > 0 ? `${number(rest)} more callers with fewer calls: see /status.` : "";
}

function readRow(read) {
  const counts = [read.hit, read.joined, read.fetched, read.stale, read.bypass];
  return [[read.command], ...counts.map((count) => [number(count), "number"]), [percent(read.hit_ratio), "number"]];
}

function showReads(reads) {
  byId("reads-section").hidden = reads.length === 0;
  fillRows(byId("reads"), reads.map(readRow));
}

let points = [];
let shownApp = null;

function showState(text, style) {
  const state = byId("state");
  // Screen readers announce every change of this element, so it changes only with its text.
  if (state.textContent !== text) state.textContent = text;
  state.className = style;
}

function showProgram(status) {
  byId("version").textContent = status.version;
  const degraded = status.apps.filter((app) => app.state.is !== "primary" || app.state.cause || app.state.proxy_failure);
  if (!status.ready) showState("Not ready: starting or draining", "bad");
  else if (degraded.length) showState(`Ready, with problems: ${degraded.map((app) => app.name).join(", ")}`, "warn");
  else showState("Ready", "good");
  const { connections, requests_in_flight: requests, process } = status;
  fillValues(byId("program"), [["up", duration(status.uptime_seconds)],
    ["connections", `${number(connections.now)} of ${number(connections.max)}`],
    ["requests in flight", `${number(requests.now)} of ${number(requests.max)}`],
    ["buffered", `${bytes(status.buffered_bytes.now)} of ${bytes(status.buffered_bytes.max)}`],
    ...(status.read_cache ? [["cached reads", `${bytes(status.read_cache.bytes.now)} of ${bytes(status.read_cache.bytes.max)}`]] : []),
    ["memory", bytes(process.resident_bytes)], ["log level", status.log.level ?? "–"],
    ["log lines dropped", number(status.log.lines_dropped)],
    ...webhookValues(status.apps), ...(status.fleet ? [["fleet", status.fleet.mode]] : [])]);
}

// Returns how many webhooks the apps have answered, and how many they have not.
function webhookValues(apps) {
  const outcomes = apps.flatMap((app) => (app.webhooks ? Object.entries(app.webhooks.forwarded) : []));
  if (!apps.some((app) => app.webhooks)) return [];
  const sum = (isWanted) => outcomes.reduce((all, [name, count]) => all + (isWanted(name) ? count : 0), 0);
  const isAnswered = (name) => name === "ok" || name === "failed";
  return [["webhooks answered by apps", number(sum(isAnswered))],
    ["webhooks not answered", number(sum((name) => !isAnswered(name)))]];
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
    points = (await get(`/status/history/${app.name}`)).points;
    shownApp = app.name;
  }
  const now = app.last_second;
  if (now.at > (points.at(-1)?.at ?? 0)) points = [...points, now].slice(-POINTS_MAX);
  if (points.length) for (const plot of PLOTS) drawPlot(plot, points);
  fillRows(byId("quota"), app.quota.map(quotaRow));
  showRelations(app.relations);
  showReads(app.cached_reads);
  showCallers(app.callers);
  fillRows(byId("codes"), app.since_start.calls.map(codeRow));
  document.body.dataset.shown = String(now.at);
}

async function get(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`${path} returned ${response.status}`);
  return response.json();
}

let refreshing = false;

async function refresh() {
  if (refreshing || document.hidden) return;
  refreshing = true;
  try {
    await show(await get("/status"));
  } catch {
    showState("chatgate is not responding; showing old data", "bad");
  }
  refreshing = false;
}

byId("plots").append(...PLOTS.map(makePlot));
byId("app").addEventListener("change", refresh);
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 1000);
refresh();
