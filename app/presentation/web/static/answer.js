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
/** How long a button says that it has copied. */
const COPIED_MS = 1500;

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
  /** @type {(() => void)[]} */
  #waiting = [];
  #render;
  #keepingPlace;

  /**
   * @param {(markdown: string) => Promise<string>} render  safe HTML for Markdown
   * @param {(change: () => void) => void} keepingPlace  runs a change of the page's height
   * @param {(words: string) => void} announce  tells those who do not see the page
   */
  constructor(render, keepingPlace, announce) {
    this.#render = render;
    this.#keepingPlace = keepingPlace;
    this.element.className = "answer";
    this.element.addEventListener("click", async ({ target }) => {
      if (target instanceof HTMLButtonElement && target.matches(".copy")) announce(await copy(target));
    });
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

  /** @returns {Promise<void>}  settles once everything shown stands as HTML, or could not be rendered */
  laidOut() {
    return this.#busy ? new Promise((resolve) => this.#waiting.push(resolve)) : Promise.resolve();
  }

  /** @returns {string}  the answer as it is read out: without signs of Markdown, and with code only named */
  spoken() {
    const copy = /** @type {HTMLElement} */ (this.element.cloneNode(true));
    for (const figure of copy.querySelectorAll("figure")) figure.replaceWith(codeInWords(figure));
    return (copy.textContent ?? "").replace(/\s+/g, " ").trim();
  }

  #clear() {
    this.#version++; // an HTML that is on its way belongs to text that is gone
    this.#rendered = 0;
    this.element.replaceChildren(this.#tail);
  }

  #schedule() {
    if (this.#busy) return;
    if (!this.#stale) {
      for (const resolve of this.#waiting.splice(0)) resolve();
      return;
    }
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
    patch(this.element, template.content);
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
 * Make `element` hold what `fresh` holds, and keep every node that is there already: with them stay focus, selection
 * and scroll position, also those of a code block or table that grows.
 *
 * @param {Element} element
 * @param {Element | DocumentFragment} fresh
 */
function patch(element, fresh) {
  let old = element.firstChild;
  while (old && fresh.firstChild) {
    const wanted = fresh.firstChild;
    const next = old.nextSibling;
    if (old.isEqualNode(wanted) || saysCopied(old)) {
      wanted.remove();
    } else if (old instanceof Text && wanted instanceof Text) {
      old.data = wanted.data;
      wanted.remove();
    } else if (old instanceof Element && wanted instanceof Element && old.localName === wanted.localName) {
      for (const name of old.getAttributeNames()) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
      for (const { name, value } of wanted.attributes) old.setAttribute(name, value);
      patch(old, wanted);
      wanted.remove();
    } else {
      old.replaceWith(wanted);
    }
    old = next;
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
  element.append(...fresh.childNodes);
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
  const language = /language-(\S+)/.exec(pre.querySelector("code")?.className ?? "")?.[1];
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  const button = document.createElement("button");
  caption.textContent = language ?? "code";
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.ariaLabel = `Copy ${codeName(language)}`;
  makeScrollable(pre, codeName(language));
  pre.replaceWith(figure);
  caption.append(button);
  figure.append(caption, pre);
}

/** @param {string | null | undefined} language */
const codeName = (language) => (language && language !== "code" ? `${language} code` : "code");

/** @param {HTMLTableElement} table */
function frameTable(table) {
  const frame = document.createElement("div");
  frame.className = "wide";
  makeScrollable(frame, "Table");
  table.replaceWith(frame);
  frame.append(table);
}

/**
 * What may be wider than the page is scrolled by keyboard, so it takes the focus and needs a name.
 *
 * @param {HTMLElement} element
 * @param {string} name
 */
function makeScrollable(element, name) {
  element.tabIndex = 0;
  element.role = "region";
  element.ariaLabel = name;
}

/**
 * What to read out instead of a code block: nobody wants to hear it sign by sign without having asked.
 *
 * @param {Element} figure
 * @returns {string}
 */
function codeInWords(figure) {
  const language = figure.querySelector("figcaption")?.firstChild?.textContent ?? "code";
  const lines = (figure.querySelector("pre")?.textContent ?? "").trimEnd().split("\n").length;
  return ` Code block, ${language === "code" ? "" : `${language}, `}${lines} ${lines === 1 ? "line" : "lines"}. `;
}

/** @param {Node} node  a button that has just copied something and still says so */
const saysCopied = (node) => node instanceof HTMLButtonElement && node.textContent !== "Copy";

/**
 * @param {HTMLButtonElement} button
 * @returns {Promise<string>}  what to tell those who do not see the button
 */
async function copy(button) {
  const figure = button.closest("figure");
  const text = figure?.querySelector("code")?.textContent ?? "";
  let copied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copied = copyBySelection(text); // no clipboard without https or the right to it
    button.focus();
  }
  const name = button.ariaLabel ?? "";
  const words = copied ? "Copied" : "Not copied";
  button.textContent = words;
  button.ariaLabel = name.replace(/^(Not copied|Copied|Copy)/, words);
  setTimeout(() => {
    button.textContent = "Copy";
    button.ariaLabel = name.replace(/^(Not copied|Copied|Copy)/, "Copy");
  }, COPIED_MS);
  return `${words}.`;
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
