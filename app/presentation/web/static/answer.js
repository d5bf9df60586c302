// @ts-check
/**
 * One answer on the page: text at once, Markdown soon after.
 *
 * The server renders Markdown (`POST /api/render`). While an answer grows, what is rendered already stands as HTML
 * and what came since as plain text behind it, so no token waits for a rendering.
 */

const SHORTEST_INTERVAL_MS = 300;
/** Share of the time that may go into renderings; a long answer is rendered less often. */
const RENDER_SHARE = 0.25;
/** How long a rendering waits while somebody marks the text it would replace. */
const POLITE_DELAY_MS = 500;

export class AnswerView {
  element = document.createElement("div");
  #tail = document.createElement("span");
  #text = "";
  /** How much of the text stands as HTML; the rest is in the tail. */
  #rendered = 0;
  #busy = false;
  #stale = false;
  #version = 0;
  #notBefore = 0;
  #render;
  #keepingPlace;

  /**
   * @param {(markdown: string) => Promise<string>} render  safe HTML for Markdown
   * @param {(change: () => void) => void} keepingPlace  runs a change of the page's height
   */
  constructor(render, keepingPlace) {
    this.#render = render;
    this.#keepingPlace = keepingPlace;
    this.element.className = "answer";
    this.#tail.className = "tail";
    this.element.append(this.#tail);
  }

  /**
   * Show this text; usually what was there before and some more.
   *
   * @param {string} text
   */
  show(text) {
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) this.#clear(); // it was cut back
    this.#text = text;
    this.#writeTail();
    this.#stale = true;
    this.#schedule();
  }

  #clear() {
    this.#version++; // an HTML that is on its way belongs to text that is gone
    this.#rendered = 0;
    this.element.replaceChildren(this.#tail);
  }

  #schedule() {
    if (this.#busy || !this.#stale) return;
    this.#busy = true;
    setTimeout(() => this.#update(), Math.max(0, this.#notBefore - performance.now()));
  }

  async #update() {
    if (this.#inUse()) {
      setTimeout(() => this.#update(), POLITE_DELAY_MS);
      return;
    }
    const [text, version, begun] = [this.#text, this.#version, performance.now()];
    this.#stale = false;
    try {
      const html = await this.#render(text);
      if (version === this.#version && !this.#inUse()) this.#keepingPlace(() => this.#place(html, text));
      else this.#stale = true;
    } catch {
      // The plain text stays, and stays readable; the next piece of the answer, if any, brings the next try.
    }
    const took = performance.now() - begun;
    this.#notBefore = begun + Math.max(SHORTEST_INTERVAL_MS, took / RENDER_SHARE);
    this.#busy = false;
    this.#schedule();
  }

  /**
   * @param {string} html
   * @param {string} text  what it stands for
   */
  #place(html, text) {
    const template = document.createElement("template");
    template.innerHTML = html;
    for (const pre of template.content.querySelectorAll("pre")) frameCode(pre);
    for (const table of template.content.querySelectorAll("table")) frameTable(table);
    this.#tail.remove();
    replaceFromFirstChange(this.element, template.content);
    // Space at the end has left no trace in the HTML, so it opens the tail: what follows may be a new paragraph.
    const kept = text.trimEnd();
    this.#rendered = kept.length;
    placeForMore(this.element, kept).append(this.#tail);
    this.#writeTail();
  }

  #writeTail() {
    const rest = this.#text.slice(this.#rendered);
    this.#tail.textContent = rest.trim() === "" ? "" : rest;
  }

  /** Somebody marks text in the last block, which new HTML would take away. Earlier blocks stay as they are. */
  #inUse() {
    const selection = getSelection();
    const last = this.element.lastElementChild;
    return selection !== null && !selection.isCollapsed && last !== null && selection.containsNode(last, true);
  }
}

/**
 * Make `element` hold what `fresh` holds, and keep the nodes at its beginning that are the same: with them stay focus,
 * selection and scroll position.
 *
 * @param {Element} element
 * @param {DocumentFragment} fresh
 */
function replaceFromFirstChange(element, fresh) {
  let old = element.firstChild;
  while (old && fresh.firstChild?.isEqualNode(old)) {
    fresh.firstChild.remove();
    old = old.nextSibling;
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
  element.append(fresh);
}

/**
 * Where text that follows would go: the innermost last paragraph, item or open code block.
 *
 * @param {Element} root
 * @param {string} text  what it shows, without space at the end
 * @returns {Element}
 */
function placeForMore(root, text) {
  let block = root;
  for (;;) {
    const last = block.lastElementChild;
    const isBlock = last?.matches("p, ul, ol, li, blockquote, figure, pre, pre > code, h1, h2, h3, h4, h5, h6");
    if (!last || !isBlock || last.nextSibling?.textContent?.trim()) break;
    block = last;
  }
  if (block.localName !== "code") return block;
  if (/^[ \t]*(```+|~~~+)$/.test(text.slice(text.lastIndexOf("\n") + 1))) return root; // its fence is closed
  block.textContent = block.textContent?.trimEnd() ?? "";
  return block;
}

/**
 * Put a code block into a frame with its language and a button that copies it.
 *
 * @param {HTMLPreElement} pre
 */
function frameCode(pre) {
  const code = pre.querySelector("code");
  const language = /language-(\S+)/.exec(code?.className ?? "")?.[1] ?? "";
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const button = document.createElement("button");
  caption.textContent = language || "code";
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy ${language ? `${language} ` : ""}code`);
  button.addEventListener("click", () => copy(button, code?.textContent ?? ""));
  pre.replaceWith(figure);
  pre.tabIndex = 0; // a wide block is scrolled by keyboard
  caption.append(button);
  figure.append(caption, pre);
}

/** @param {HTMLTableElement} table */
function frameTable(table) {
  const frame = document.createElement("div");
  frame.className = "wide";
  frame.tabIndex = 0;
  table.replaceWith(frame);
  frame.append(table);
}

/**
 * @param {HTMLButtonElement} button
 * @param {string} text
 */
async function copy(button, text) {
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyBySelection(text); // no clipboard without https or the right to it
  }
  button.textContent = copied ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/**
 * @param {string} text
 * @returns {boolean}
 */
function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.className = "unseen";
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
