/** An answer as its tokens, shaded by how likely each was; pointing at one, or moving to it by arrow keys, shows the others. */

import { $, h } from "./dom.js";

const SHADES = [0.9, 0.6, 0.3, 0.1]; // probability from which a token is of shade 0, 1, 2, 3

export function tokens(list) {
  const spans = list.map(([text, logprob, top], index) => {
    const probability = Math.exp(logprob);
    const shade = SHADES.findIndex((from) => probability >= from);
    return h(`span.token.shade-${shade < 0 ? SHADES.length : shade}`, {
      tabIndex: index === 0 ? 0 : -1,
      "aria-label": `${spoken(text)}, ${percent(probability)}`,
      onpointerenter: (event) => show(event.currentTarget, text, probability, top),
      onpointerleave: hide,
      onfocus: (event) => show(event.currentTarget, text, probability, top),
      onblur: hide,
    }, text);
  });
  const box = h("div.tokens", { role: "group", "aria-label": "Tokens and their probabilities" }, spans);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && spans[spans.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return box;
}

function show(span, text, probability, top) {
  const tip = $("tip");
  const rows = top.map(([other, logprob]) => [other, Math.exp(logprob)]);
  if (!rows.some(([other]) => other === text)) rows.push([text, probability]);
  tip.replaceChildren(
    ...rows.map(([other, share]) => {
      const bar = h("i.bar");
      bar.style.width = `${Math.max(1, share * 100)}%`;
      return h(`div.tip-row${other === text ? ".chosen" : ""}`, {}, h("code", {}, spoken(other)), h("span.track", {}, bar), h("b", {}, percent(share)));
    }),
  );
  tip.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8));
  const above = at.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 8 ? at.bottom + 8 : above}px`;
}

function hide() {
  $("tip").hidden = true;
}

function spoken(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function percent(share) {
  return share >= 0.0995 ? `${(share * 100).toFixed(0)} %` : `${(share * 100).toFixed(share >= 0.001 ? 1 : 2)} %`;
}
