/** What goes together: every choice is judged by the server as a launch would, by the same rules; nothing is known here. */

import { $, announce, copy, h } from "./dom.js";
import { getJson, postJson } from "./server.js";
import { table, words } from "./dashboard.js";

const PATIENCE = 120; // milliseconds after the last change

let known = null;
let asked = {}; // setting -> value, of what is not left open
let machine = null;
let count = 1;
let waiting = 0;
let asking = null;
let panel = null;

export async function enter(query) {
  if (known) return;
  const view = $("view-compatibility");
  view.replaceChildren(h("div.page", {}, h("p.note", {}, "Asking the server what there is.")));
  try {
    known = await getJson("dashboard/words");
  } catch (error) {
    known = null;
    view.replaceChildren(h("div.page", {}, h("p.banner", { role: "alert" }, error.message)));
    return;
  }
  machine = known.machines[0];
  restore(new URLSearchParams(query));
  build(view);
  judge();
}

export function leave() {
  clearTimeout(waiting);
}

// --- the address keeps what is chosen, so that it can be sent to somebody -------------------------------------------

function restore(given) {
  machine = known.machines.find((each) => each.id === given.get("on")) ?? machine;
  count = machine.counts.find((each) => each === Number(given.get("times"))) ?? 1;
  for (const entry of known.settings) {
    const text = given.get(entry.key);
    if (text === null) continue;
    const value = entry.choices.length ? entry.choices.find((each) => String(each) === text) : Number(text);
    if (value !== undefined && !Number.isNaN(value)) asked[entry.key] = value;
  }
}

function keep() {
  const query = new URLSearchParams(Object.entries(asked).map(([key, value]) => [key, String(value)]));
  if (machine !== known.machines[0]) query.set("on", machine.id);
  if (count > 1) query.set("times", count);
  const text = query.toString();
  history.replaceState(null, "", text ? `#compatibility?${text}` : "#compatibility");
}

function set(key, value) {
  if (value === null || value === undefined || value === "auto") delete asked[key];
  else asked[key] = value;
  changed();
}

function changed() {
  keep();
  clearTimeout(waiting);
  waiting = setTimeout(judge, PATIENCE);
}

// --- the form -------------------------------------------------------------------------------------------------------

function build(view) {
  const kinds = known.settings.filter((entry) => entry.kind && entry.choices.length > 2);
  const others = known.settings.filter((entry) => !entry.kind && !entry.plugin);
  const plugins = Object.groupBy ? Object.groupBy(known.settings.filter((entry) => entry.plugin), (entry) => entry.plugin) : grouped();
  const owners = new Set();
  const tunable = (entry) => entry.offers.some((offer) => plugins[offer.plugin]);
  kinds.sort((one, other) => tunable(other) - tunable(one)); // stable: otherwise in the server's order
  const form = h("form.form", { onsubmit: (event) => event.preventDefault() }, where(), h("div.kinds", {}, kinds.map((entry) => {
    const own = [...new Set(entry.offers.map((offer) => offer.plugin))].filter((plugin) => plugins[plugin] && !owners.has(plugin));
    own.forEach((plugin) => owners.add(plugin));
    return h("fieldset", {}, h("legend", {}, words(entry.kind)), entry.description !== words(entry.kind) && h("p.note", {}, entry.description), chips(entry), own.map((plugin) => fields(plugin, plugins[plugin])));
  })));
  form.append(h("details.fold", {}, h("summary", {}, "Sizes, formats and limits"), h("div.fields", {}, others.map(field))));
  const rest = Object.keys(plugins).filter((plugin) => !owners.has(plugin));
  if (rest.length) form.append(...rest.map((plugin) => fields(plugin, plugins[plugin])));
  panel = h("aside.verdict", { "aria-label": "Verdict", "aria-live": "polite", "aria-busy": "true" });
  view.replaceChildren(h("div.page.wide", {}, h("header.head", {}, h("h1", {}, "What goes together"), h("p", {}, "Tick what you want. Each change is composed and judged by this server as a launch would be; nothing is loaded.")), h("div.split", {}, form, panel)));
  reflect();
}

function grouped() {
  const found = {};
  for (const entry of known.settings) if (entry.plugin) (found[entry.plugin] ??= []).push(entry);
  return found;
}

function where() {
  const select = h("select", { id: "machine", onchange: () => {
    machine = known.machines.find((each) => each.id === select.value);
    count = machine.counts.includes(count) ? count : 1;
    reflect();
    changed();
  } }, known.machines.map((each) => h("option", { value: each.id }, each.name)));
  const counts = [1, 2, 4, 8].map((each) => h("label.chip", {}, h("input", { type: "radio", name: "count", value: String(each), onchange: () => ((count = each), changed()) }), h("span", {}, `${each}×`)));
  return h("fieldset", {}, h("legend", {}, "machine"), h("div.row", {}, h("label.field.inline", {}, h("span.hidden", {}, "Machine"), select), h("div.chips", { role: "radiogroup", "aria-label": "How many devices" }, counts)));
}

function chips(entry) {
  const offers = Object.fromEntries((entry.offers ?? []).map((offer) => [offer.name, offer]));
  return h("div.chips", { role: "radiogroup", "aria-label": words(entry.kind ?? entry.key) }, entry.choices.map((choice) => {
    const offer = offers[choice];
    return h("label.chip", { "data-key": entry.key, "data-choice": String(choice), title: offer ? `${offer.summary} (plugin ${offer.plugin})` : choice === "auto" ? "left open: the server decides" : "" },
      h("input", { type: "radio", name: entry.key, value: String(choice), onchange: () => set(entry.key, choice) }), h("span", {}, String(choice)), h("em.mark", { hidden: true }));
  }));
}

function fields(plugin, entries) {
  return h("details.fold.small", { open: entries.length === 1 && !entries[0].choices.length }, h("summary", {}, `Settings of ${plugin}`), h("div.fields", {}, entries.map(field)));
}

function field(entry) {
  const name = entry.key.split(".").at(-1);
  const shown = entry.default === null || entry.default === undefined ? "auto" : String(entry.default);
  if (entry.type === "boolean")
    return h("label.check", { title: entry.description }, h("input", { type: "checkbox", "data-key": entry.key, onchange: (event) => set(entry.key, event.target.checked === entry.default ? null : event.target.checked) }), h("span", {}, words(name), h("small", {}, entry.description)));
  const control = entry.choices.length
    ? h("select", { "data-key": entry.key, onchange: (event) => {
        const choice = entry.choices.find((each) => String(each) === event.target.value);
        set(entry.key, choice === entry.default ? null : choice);
      } }, entry.choices.map((choice) => h("option", { value: String(choice) }, String(choice))))
    : h("input", { type: "number", "data-key": entry.key, min: entry.minimum, max: entry.maximum, step: entry.type === "integer" ? 1 : "any", placeholder: shown, oninput: (event) => set(entry.key, event.target.value === "" || Number.isNaN(event.target.valueAsNumber) ? null : event.target.valueAsNumber) });
  return h("label.field", { title: entry.flag }, h("span", {}, words(name)), control, h("small", {}, entry.description));
}

/** The form shows what is asked for, wherever it came from: a click, the address, a remedy. */
function reflect() {
  const view = $("view-compatibility");
  $("machine").value = machine.id;
  for (const input of view.querySelectorAll("input[name=count]")) {
    input.checked = Number(input.value) === count;
    input.disabled = !machine.counts.includes(Number(input.value));
  }
  for (const entry of known.settings) {
    const value = asked[entry.key] ?? (entry.kind ? "auto" : entry.default);
    for (const input of view.querySelectorAll(`input[type=radio][name="${entry.key}"]`)) input.checked = input.value === String(value);
    const control = view.querySelector(`[data-key="${entry.key}"]:is(input, select)`);
    if (control?.type === "checkbox") control.checked = Boolean(value);
    else if (control && control !== document.activeElement) control.value = control.tagName === "SELECT" ? String(value) : (asked[entry.key] ?? "");
  }
}

// --- the verdict ----------------------------------------------------------------------------------------------------

async function judge() {
  asking?.abort();
  const mine = (asking = new AbortController());
  const body = { settings: asked, machine: machine.id, count };
  panel.setAttribute("aria-busy", "true");
  panel.previousElementSibling.toggleAttribute("data-stale", true); // the form's marks are of what was chosen before
  try {
    verdict(await postJson("dashboard/compose", body, mine.signal));
    panel.setAttribute("aria-busy", "false");
    marks((await postJson("dashboard/compose", { ...body, neighbours: true }, mine.signal)).neighbours);
  } catch (error) {
    if (error.name === "AbortError") return;
    panel.replaceChildren(h("p.banner", { role: "alert" }, error.message));
    panel.setAttribute("aria-busy", "false");
  }
}

function verdict(answer) {
  const errors = answer.problems.filter((each) => each.severity === "error");
  const button = h("button", { type: "button", onclick: () => copy(answer.command, button) }, "Copy");
  panel.replaceChildren(
    h(`div.outcome.${answer.ok ? "good" : "bad"}`, { id: "outcome" }, h("i", { "aria-hidden": "true" }, answer.ok ? "✓" : "✕"), h("div", {}, h("strong", {}, answer.ok ? "It goes together" : "It is refused"), h("span", {}, answer.ok ? on() : `${errors.length} ${errors.length === 1 ? "reason" : "reasons"}, ${on()}`))),
    ...answer.problems.map(problem),
    h("div.command", {}, h("code", { id: "command" }, answer.command), button),
    answer.ok ? fold("What it takes", ["fact", "value"], answer.facts.filter((each) => each.value !== "unknown").map((each) => [h("code", {}, each.name), each.value])) : "",
    Object.keys(asked).length ? h("button.quiet", { type: "button", onclick: clear }, "Leave everything open again") : "",
  );
  culprits(errors);
  announce(answer.ok ? "It goes together" : `It is refused: ${errors.map((each) => each.what).join("; ")}`);
}

function fold(title, ...rows) {
  return h("details.fold.facts", { open: matchMedia("(min-width: 1041px)").matches }, h("summary", {}, title), table(title, ...rows));
}

/** What an error was set by is framed, where it stands in the form. */
function culprits(errors) {
  const flags = new Set(errors.flatMap((each) => each.where.split(", ")));
  const view = $("view-compatibility");
  for (const framed of view.querySelectorAll(".culprit")) framed.classList.remove("culprit");
  for (const entry of known.settings) {
    if (!flags.has(entry.flag)) continue;
    view.querySelector(`.chip[data-key="${entry.key}"]:has(:checked), [data-key="${entry.key}"]:is(input, select)`)?.classList.add("culprit");
  }
}

const on = () => `on ${count > 1 ? `${count} × ` : ""}${machine.name}`;

function problem(each) {
  return h(`article.problem.${each.severity}`, {},
    h("header", {}, h("span.rule", {}, each.rule || (each.severity === "error" ? "mistake" : "note")), each.severity === "warning" ? h("span.note", {}, "a warning") : ""),
    h("p", {}, `${each.what[0].toUpperCase()}${each.what.slice(1)}.`),
    each.where ? h("p.note", {}, "Set by ", h("code", {}, each.where)) : "",
    each.remedies.length ? h("ul.remedies", {}, each.remedies.map((remedy) => h("li", {}, h("span", {}, remedy.text), remedy.set ? h("button", { type: "button", "aria-label": `Do this: ${remedy.text}`, onclick: () => apply(remedy.set) }, "Do this") : ""))) : "",
  );
}

function apply(changes) {
  for (const [key, value] of Object.entries(changes)) {
    const entry = known.settings.find((each) => each.key === key);
    if (value === null || (entry && !entry.kind && value === entry.default)) delete asked[key];
    else asked[key] = value;
  }
  reflect();
  changed();
}

function clear() {
  asked = {};
  reflect();
  changed();
}

function marks(neighbours) {
  panel.previousElementSibling.toggleAttribute("data-stale", false);
  for (const chip of $("view-compatibility").querySelectorAll(".chip[data-key]")) {
    const rules = neighbours[chip.dataset.key]?.[chip.dataset.choice];
    const mark = chip.querySelector(".mark");
    mark.hidden = !rules;
    chip.classList.toggle("conflicts", Boolean(rules));
    mark.textContent = rules ? `✕ ${rules[0] ?? "does not compose"}${rules.length > 1 ? ` +${rules.length - 1}` : ""}` : "";
    mark.title = rules?.join(", ") ?? "";
  }
}
