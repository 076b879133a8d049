// page.js - asks for /status.json every second and draws what it says. Keeps what it has heard, for the curves; decides
// nothing. See messages.py (Status) for the fields.
"use strict";

const POLL_MS = 1000;
const REMEMBERED_S = 300;
const GONE_SHOWN_S = 120;
const NEW_S = 15;
const LOSS_UNKNOWN = 0xffffffff;
const ALGORITHMS = ["ring", "ring", "mesh", "two-level"];
const LEAVING = ["lost", "lease", "leave"];
const RATES_OVER_S = 10;
// Decisions that are always listed; the rest on request. Then, the colours of both.
const USUAL = new Set(["join", "epoch", "lost", "lease", "leave", "gone", "empty", "disconnected", "reconnected", "restart",
  "dials only", "dead link", "far from the prediction", "state"]);
const COLOURS = new Map([["join", "good"], ["reconnected", "good"], ["healed", "good"], ["lost", "bad"], ["lease", "bad"],
  ["dead link", "bad"], ["state", "bad"], ["leave", "warn"], ["gone", "warn"], ["restart", "warn"], ["suspect", "warn"],
  ["disconnected", "warn"], ["dials only", "warn"], ["far from the prediction", "warn"], ["epoch", "made"], ["plan", "made"]]);

const byId = (id) => document.getElementById(id);
const short8 = (peer) => peer.slice(0, 8);
const state = { status: null, heardAt: 0, group: 0, hover: "", history: new Map(), totals: new Map() };
const charts = [
  [new Chart("bytes sent and received by ops", (value) => short(value, "B/s"), false), "bytes"],
  [new Chart("ops ended", (value) => short(value, "/s"), false), "ops"],
  [new Chart("members", (value) => value.toFixed(0), true), "members"],
];

// -- the loop -------------------------------------------------------------------------------------------------

async function poll() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    take(await answer.json());
  } catch (error) {
    sayLive(error);
  }
  setTimeout(poll, POLL_MS);
}

function take(status) {
  state.status = status;
  state.heardAt = Date.now() / 1000;
  const peers = status.groups.flatMap((group) => group.members);
  state.totals = new Map(peers.map((peer) => [peer.peer, grown(state.totals.get(peer.peer) || [], peer)]));
  for (const group of status.groups) {
    const seen = state.history.get(group.group) || [];
    const sum = (name) => group.members.reduce((total, member) => total + rate(member, name), 0);
    seen.push({ time: state.heardAt, bytes: sum("bytes"), ops: sum("ops"), members: group.members.length });
    while (seen[0].time < state.heardAt - REMEMBERED_S) seen.shift();
    state.history.set(group.group, seen);
  }
  render();
  sayLive(null);
}

/** What a peer had told of itself before, and now; as old as rates look back. */
function grown(told, peer) {
  if (!peer.ops) return []; // it has told nothing yet, or not to a coordinator that was started anew
  const all = [...told, { time: state.heardAt, bytes: peer.bytes, ops: peer.ops }];
  while (all.length > 2 && all[1].time <= state.heardAt - RATES_OVER_S) all.shift();
  return all;
}

/** Over some seconds: what an op moves is told when it has ended. At first, what the coordinator says. */
function rate(peer, name) {
  const told = state.totals.get(peer.peer) || [];
  if (told.length < 3) return peer[`${name}_per_s`];
  const [first, last] = [told[0], told[told.length - 1]];
  return Math.max(0, last[name] - first[name]) / (last.time - first.time);
}

function sayLive(error) {
  const live = byId("live");
  live.className = `pill ${error ? "bad" : "good"}`;
  live.textContent = error ? `no answer${state.heardAt ? ` for ${age(Date.now() / 1000 - state.heardAt)}` : ""}` : "live";
}

function render() {
  const status = state.status;
  const groups = status.groups;
  const group = groups.find((one) => one.group === state.group) || groups[0];
  document.title = `pccl ${status.run}`;
  byId("run").textContent = status.run;
  byId("trouble").hidden = !status.trouble;
  byId("trouble").textContent = `Decides nothing, for its state cannot be written: ${status.trouble}`;
  renderChooser(groups, group);
  renderFacts(status, group);
  if (!group) {
    byId("graph").replaceChildren(draw("text", { class: "empty", x: 320, y: 235 }, "Nobody has joined yet"));
    return;
  }
  renderGraph(group);
  renderPlan(group);
  renderCharts(group);
  renderMembers(group);
  renderEvents(group);
  renderLinks(group);
}

function renderChooser(groups, group) {
  byId("chooser").hidden = groups.length < 2;
  const options = groups.map((one) => {
    const option = make("option", "", one.group);
    option.value = one.group;
    option.selected = one === group;
    return option;
  });
  if (document.activeElement !== byId("group")) byId("group").replaceChildren(...options);
}

function renderFacts(status, group) {
  const facts = [];
  if (group) {
    const boundary = Math.max(0, ...group.members.map((member) => member.boundary));
    const wanted = group.epoch ? `at least ${group.min_peers}` : `${group.form_peers} to begin`;
    facts.push(["", group.state], ["epoch", group.epoch], ["boundary", boundary]);
    facts.push([`members (${wanted})`, group.members.length]);
    if (group.waiting.length) facts.push(["waiting", group.waiting.length]);
  }
  facts.push(["up", age(status.up_s)]);
  if (status.incarnation) facts.push(["incarnation", status.incarnation]);
  if (status.malformed) facts.push(["malformed messages", status.malformed]);
  byId("facts").replaceChildren(...facts.map(([name, value]) => make("span", "", name ? `${name} ` : "", make("b", "", value))));
}

// -- peers and links ------------------------------------------------------------------------------------------

const MIDDLE = { x: 320, y: 228 };
const RADIUS = { x: 205, y: 158 };
const NODE = 21;

/** Members by rank, who waits, and who has gone a short while ago, all around a circle. */
function nodesOf(group) {
  const here = new Set([...group.members, ...group.waiting].map((peer) => peer.peer));
  const gone = group.log
    .filter((entry) => LEAVING.includes(entry.what) && entry.peer && !here.has(entry.peer) && entry.age_s < GONE_SHOWN_S)
    .map((entry) => ({ peer: entry.peer, kind: "gone", mark: "×", about: `${entry.what} ${age(entry.age_s)} ago` }));
  const entered = new Map(group.log.filter((entry) => entry.what === "join").map((entry) => [entry.peer, entry.age_s]));
  const members = group.members.map((peer) => {
    const fresh = peer.since > 0 && entered.has(peer.peer) && entered.get(peer.peer) < NEW_S ? " new" : "";
    const kind = (peer.connected ? "in" : "away") + fresh;
    return { peer: peer.peer, kind, mark: peer.rank, about: peer.host };
  });
  const waiting = group.waiting.map((peer) => ({ peer: peer.peer, kind: "waits", mark: "…", about: `${peer.host} waits` }));
  const nodes = [...members, ...waiting, ...gone];
  nodes.forEach((node, index) => {
    const turn = (index / nodes.length) * 2 * Math.PI - Math.PI / 2;
    node.x = MIDDLE.x + (nodes.length > 1 ? RADIUS.x * Math.cos(turn) : 0);
    node.y = MIDDLE.y + (nodes.length > 1 ? RADIUS.y * Math.sin(turn) : 0);
  });
  return nodes;
}

function renderGraph(group) {
  const nodes = nodesOf(group);
  const size = Math.max(9, Math.min(NODE, 360 / nodes.length));
  const rates = group.links.map((link) => link.bytes_per_s).filter((rate) => rate > 0);
  const scale = { least: Math.min(...rates), most: Math.max(...rates) };
  const lines = group.links.flatMap((link) => linkLines(link, nodes, scale));
  byId("graph").replaceChildren(...lines, ...nodes.map((node) => drawNode(node, size)));
  const chosen = group.links.find((link) => keyOf(link) === state.hover);
  byId("hint").textContent = chosen ? linkInWords(chosen, group) : hintOf(group, scale, rates.length);
}

/** Each direction bends to its own side. */
function linkLines(link, nodes, scale) {
  const a = nodes[link.sender];
  const b = nodes[link.receiver];
  const bend = 0.07;
  const path = `M${a.x} ${a.y}Q${(a.x + b.x) / 2 + (b.y - a.y) * bend} ${(a.y + b.y) / 2 - (b.x - a.x) * bend} ${b.x} ${b.y}`;
  const known = link.bytes_per_s > 0;
  const part = known ? Math.log(link.bytes_per_s / scale.least + 1e-9) / Math.max(1e-6, Math.log(scale.most / scale.least)) : 0;
  const even = scale.most / scale.least < 1.01 ? 0.5 : Math.max(0, Math.min(1, part));
  const look = link.state !== "up" ? (link.state === "broken" ? " broken" : " suspected") : known ? "" : " unknown";
  const chosen = keyOf(link) === state.hover ? " chosen" : "";
  const line = draw("path", { class: `link${look}${chosen}`, d: path });
  line.setAttribute("stroke-width", known ? 1.2 + 3.6 * even : 1.4);
  line.setAttribute("opacity", known && !chosen ? 0.35 + 0.6 * even : 1);
  return [line, draw("path", { class: "reach", d: path, "data-link": keyOf(link) })];
}

function drawNode(node, size) {
  const outward = node.y < MIDDLE.y - 1 ? -1 : 1;
  const name = node.y + outward * (size + (outward < 0 ? 26 : 13));
  return draw("g", { class: `node ${node.kind}` },
    draw("circle", { cx: node.x, cy: node.y, r: size }),
    draw("text", { x: node.x, y: node.y }, node.mark),
    draw("text", { class: "name", x: node.x, y: name }, short8(node.peer)),
    draw("text", { class: "about", x: node.x, y: name + 15 }, clip(node.about, 26)));
}

const clip = (text, limit) => (text.length > limit ? `${text.slice(0, limit - 1)}…` : text);
const keyOf = (link) => `${link.sender}>${link.receiver}`;
const lossOf = (link) => (link.loss_ppm === LOSS_UNKNOWN ? "" : `${(link.loss_ppm / 1e4).toPrecision(2)} %`);

function linkInWords(link, group) {
  const ends = [link.sender, link.receiver].map((rank) => short8(group.members[rank].peer)).join(" → ");
  const figures = [link.bytes_per_s ? short(link.bytes_per_s, "B/s") : "bandwidth not known"];
  if (link.rtt_us) figures.push(`round trip ${seconds(link.rtt_us / 1e6)}`);
  if (lossOf(link)) figures.push(`loss ${lossOf(link)}`);
  figures.push(`${link.streams} streams`);
  if (link.state !== "up") figures.push(link.state);
  if (link.via >= 0) figures.push(`over rank ${link.via}`);
  return `${ends}: ${figures.join(", ")}`;
}

function hintOf(group, scale, known) {
  if (!group.links.length && group.members.length > 1) return "Too many links to show each.";
  if (!known) return "Grey: bandwidth not measured. Point at a link for its figures.";
  const grey = known < group.links.length ? " Grey: not measured yet." : "";
  const range = scale.most > scale.least ? `${short(scale.least, "B/s")} to ${short(scale.most, "B/s")}` : short(scale.most, "B/s");
  return `Wide is fast: ${range}, each way.${grey} Point at a link for its figures.`;
}

// -- tables ---------------------------------------------------------------------------------------------------

/** Headings that begin with "<" stand to the left. Cells: text, or [text, class]. */
function fill(table, headings, rows) {
  const left = headings.map((heading) => heading.startsWith("<"));
  const head = make("tr", "", ...headings.map((heading, index) => make("th", left[index] ? "text" : "", heading.replace("<", ""))));
  const body = rows.map(([kind, cells, key]) => {
    const row = make("tr", kind, ...cells.map((cell, index) => {
      const [text, look] = Array.isArray(cell) ? cell : [cell, ""];
      return make("td", `${left[index] ? "text " : ""}${look}`, text);
    }));
    if (key) row.dataset.link = key;
    return row;
  });
  table.replaceChildren(make("thead", "", head), make("tbody", "", ...body));
}

function renderMembers(group) {
  const rows = [...group.members, ...group.waiting].map((peer) => ["", [
    peer.rank >= 0 ? peer.rank : ["waits", "warn"],
    [short8(peer.peer), "id"],
    peer.host,
    peer.pid,
    peer.boundary,
    short(rate(peer, "bytes"), "B/s"),
    short(peer.bytes, "B"),
    short(rate(peer, "ops"), "/s"),
    short(peer.ops, ""),
    peer.connected ? `${age(peer.heard_s)} ago` : [`${age(peer.heard_s)} ago, disconnected`, "bad"],
    [peer.inbound ? peer.address : `${peer.address}, dials only`, ""],
  ]]);
  fill(byId("members"), ["rank", "<peer", "<host", "pid", "boundary", "bytes/s", "bytes", "ops/s", "ops", "heard", "<address"], rows);
}

function renderLinks(group) {
  const name = (rank) => [short8(group.members[rank].peer), "id"];
  const looks = { up: "good", suspected: "warn", broken: "bad" };
  const sorted = [...group.links].sort((a, b) => a.bytes_per_s - b.bytes_per_s);
  const rows = sorted.map((link) => [keyOf(link) === state.hover ? "chosen" : "", [
    name(link.sender),
    name(link.receiver),
    link.bytes_per_s ? short(link.bytes_per_s, "B/s") : "–",
    link.rtt_us ? seconds(link.rtt_us / 1e6) : "–",
    lossOf(link) || "–",
    link.streams,
    [link.via >= 0 ? `${link.state}, over rank ${link.via}` : link.state, looks[link.state] || ""],
  ], keyOf(link)]);
  fill(byId("links"), ["<from", "<to", "bandwidth", "round trip", "loss", "streams", "<state"], rows);
}

// -- plan, curves, events -------------------------------------------------------------------------------------

function renderPlan(group) {
  const plan = group.plan;
  const facts = [];
  if (plan) {
    const reality = group.reality;
    facts.push(["large ops", ALGORITHMS[plan.large_algorithm] || "?"], ["streams", plan.streams]);
    const predicted = plan.predicted_s ? seconds(plan.predicted_s) : "–";
    facts.push(["predicted, 64 MiB", predicted]);
    facts.push(["expected now", reality ? seconds(reality.expected_s) : "–"]);
    facts.push(["achieved", reality && reality.achieved_s ? seconds(reality.achieved_s) : "–"]);
    facts.push(["mesh up to", plan.mesh_bytes_max > 2 ** 40 ? "any size" : short(plan.mesh_bytes_max, "B")]);
  }
  byId("plan").replaceChildren(...facts.map(([name, value]) => make("div", "", make("dt", "", name), make("dd", "", value))));
  byId("reason").textContent = plan ? plan.reason || "No reason was given." : "No plan: nobody is a member.";
}

function renderCharts(group) {
  const seen = state.history.get(group.group);
  const to = state.heardAt;
  const from = Math.max(to - REMEMBERED_S, Math.min(seen[0].time, to - 20));
  const kinds = { join: "good", lost: "bad", lease: "bad", leave: "bad" };
  const marks = group.log.filter((entry) => kinds[entry.what]).map((entry) => [to - entry.age_s, kinds[entry.what]]);
  for (const [chart, name] of charts) chart.show(seen.map((point) => [point.time, point[name]]), marks, from, to);
  byId("span-from").textContent = `${age(to - from)} ago`;
}

function renderEvents(group) {
  const all = byId("all").checked;
  const entries = [...group.log].reverse().filter((entry) => all || USUAL.has(entry.what));
  byId("events").replaceChildren(...entries.map((entry) => {
    const at = new Date((state.heardAt - entry.age_s) * 1000);
    const time = make("time", "", at.toLocaleTimeString("en-GB"));
    const parts = [make("span", "what", entry.what), " "];
    if (entry.peer) parts.push(make("span", "peer", short8(entry.peer)), " ");
    parts.push(make("span", "why", entry.reason));
    return make("li", COLOURS.get(entry.what) || "", time, make("div", "", ...parts));
  }));
}

// -- begin ----------------------------------------------------------------------------------------------------

function point(event) {
  const over = event.target instanceof Element ? event.target.closest("[data-link]") : null;
  const key = over ? over.dataset.link : "";
  if (key !== state.hover && state.status) {
    state.hover = key;
    render();
  }
}

byId("charts").append(...charts.map(([chart]) => chart.element));
const from = make("span", "");
from.id = "span-from";
byId("charts").append(make("div", "span", from, make("span", "", "now; dashed: a peer came, or went")));
byId("graph").addEventListener("pointermove", point);
byId("links").addEventListener("pointermove", point);
byId("all").addEventListener("change", render);
byId("group").addEventListener("change", (event) => {
  state.group = Number(event.target.value);
  event.target.blur();
  render();
});
poll();
