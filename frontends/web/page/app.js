/** The frame around the views: which one is shown, the theme, the key, and whether the server is there. */

import { $, announce, remember, remembered } from "./dom.js";
import { getJson, hasKey, setKey, whenKeyWanted } from "./server.js";
import * as chat from "./chat.js";
import * as dashboard from "./dashboard.js";
import * as compatibility from "./compatibility.js";

const VIEWS = { chat, dashboard, compatibility };
const TITLES = { chat: "Chat", dashboard: "Dashboard", compatibility: "Compatibility" };
let shown = null;

function show() {
  const [name, query] = location.hash.slice(1).split("?");
  const wanted = name in VIEWS ? name : "chat";
  if (wanted !== shown) {
    if (shown) VIEWS[shown].leave();
    for (const view of Object.keys(VIEWS)) $(`view-${view}`).hidden = view !== wanted;
    for (const tab of document.querySelectorAll(".tabs a")) {
      if (tab.dataset.view === wanted) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
    document.title = `${TITLES[wanted]} · Dovetail`;
    if (shown) announce(TITLES[wanted]);
    shown = wanted;
    VIEWS[wanted].enter(query ?? "");
  }
}

// --- theme: the system's, until someone says otherwise --------------------------------------------------------------

const THEMES = ["system", "light", "dark"];

function applyTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  $("theme-button").title = `Theme: ${theme}`;
  $("theme-button").setAttribute("aria-label", `Theme: ${theme}`);
}

$("theme-button").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(remembered("theme", "system")) + 1) % THEMES.length];
  remember("theme", next);
  applyTheme(next);
  announce(`Theme: ${next}`);
});
applyTheme(remembered("theme", "system"));

// --- key ------------------------------------------------------------------------------------------------------------

const EXPLAINED = $("key-reason").textContent;

function askForKey(reason) {
  $("key-button").hidden = false;
  if ($("key-dialog").open) return;
  $("key-reason").textContent = reason ? `${reason[0].toUpperCase()}${reason.slice(1)}. ${EXPLAINED}` : EXPLAINED;
  $("key-input").value = "";
  $("key-dialog").returnValue = "";
  $("key-dialog").showModal();
}

$("key-button").hidden = !hasKey();
$("key-button").addEventListener("click", () => askForKey(""));
$("key-cancel").addEventListener("click", () => $("key-dialog").close("cancel"));
$("key-dialog").addEventListener("close", () => {
  if ($("key-dialog").returnValue === "ok") {
    setKey($("key-input").value);
    begin();
  }
});
whenKeyWanted(askForKey);

// --- the server -----------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const { data } = await getJson("v1/models");
    $("model-name").textContent = data[0].id;
    $("model").title = `${data.map((each) => each.id).join(", ")}, context of ${data[0].max_model_len} tokens`;
    $("model").dataset.state = "up";
    chat.served(data[0]);
  } catch (error) {
    $("model-name").textContent = error.status === 401 ? "key wanted" : "not there";
    $("model").dataset.state = "down";
    chat.served(null);
    return;
  }
  try {
    chat.explained(await getJson("dashboard/plan"));
  } catch {
    // Without its plan the server still answers; the sampling fields then show no defaults.
  }
  if (shown !== "chat") VIEWS[shown].enter(location.hash.split("?")[1] ?? "");
}

addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  if (event.altKey && !event.ctrlKey && !event.metaKey && ["1", "2", "3"].includes(event.key)) {
    event.preventDefault();
    location.hash = Object.keys(VIEWS)[Number(event.key) - 1];
  }
});
show();
begin();
