/** Markdown as a document fragment: parsed by marked, cleaned by DOMPurify. What a model writes is never trusted. */

import { marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { copy, h } from "./dom.js";

// HTML that a model writes is text about HTML: it is shown, and never becomes any.
const shown = { "&": "&amp;", "<": "&lt;", ">": "&gt;" };
marked.use({ gfm: true, breaks: true, renderer: { html: ({ text }) => text.replace(/[&<>]/g, (sign) => shown[sign]) } });

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

const ALLOWED = {
  ALLOWED_TAGS: [
    "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "kbd", "li", "ol", "p", "pre",
    "s", "strong", "sub", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["href", "title", "align", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

export function markdown(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), ALLOWED);
  for (const block of fragment.querySelectorAll("pre")) {
    const button = h("button.copy-code", { type: "button", onclick: () => copy(block.querySelector("code")?.textContent ?? "", button) }, "Copy");
    block.replaceWith(h("div.code", {}, block.cloneNode(true), button));
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div.table", { tabIndex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}
