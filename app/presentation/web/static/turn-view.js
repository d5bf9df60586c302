// @ts-check
/** One message with its answer on the page, and the words below it. */

import { AnswerView } from "./answer.js";

/** @typedef {import("./turnstone.js").Turn} Turn */
/** @typedef {import("./turnstone.js").Usage} Usage */
/** @typedef {import("./server.js").StoredMessage} StoredMessage */

/** @type {Record<string, string>} what is worth saying about how an answer ended */
const FINISH_WORDS = {
  length: "Cut off at the longest length allowed",
  refused: "The model declined to answer",
  exam_closed: "The exam has closed",
  budget_exhausted: "Your token budget is used up",
};
/** @type {Record<string, string>} the same for a stored one */
const STATUS_WORDS = { cancelled: "Stopped", failed: "Broken off", interrupted: "Broken off" };

export class TurnView {
  item = document.createElement("li");
  answer;
  /** Its end was asked for: no more "Writing…". */
  stopping = false;
  #status = document.createElement("p");

  /**
   * @param {string} message
   * @param {ConstructorParameters<typeof AnswerView>} answer
   */
  constructor(message, ...answer) {
    this.answer = new AnswerView(...answer);
    const question = document.createElement("div");
    question.className = "question";
    question.textContent = message;
    this.#status.className = "status";
    this.item.append(speaker("You"), question, speaker("Turnstone"), this.answer.element, this.#status);
  }

  /**
   * The line below the answer.
   *
   * @param {string} words
   * @param {"waiting" | "running" | "paused" | "ended" | "failed"} mood
   */
  note(words, mood) {
    this.item.dataset.mood = mood;
    this.#status.textContent = words;
  }

  /** @param {() => void} again */
  offerRetry(again) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "retry";
    button.textContent = "Try again";
    button.addEventListener("click", again);
    this.#status.append(button);
  }

  withdrawRetry() {
    this.#status.querySelector("button")?.remove();
  }
}

/**
 * Who speaks, for those who do not see the layout.
 *
 * @param {string} name
 */
function speaker(name) {
  const element = document.createElement("span");
  element.className = "unseen";
  element.textContent = `${name}: `;
  return element;
}

/**
 * What to say below an answer that came to its end.
 *
 * @param {Turn} turn
 * @returns {string}
 */
export function endWords(turn) {
  const end = turn.state === "cancelled" ? "Stopped" : FINISH_WORDS[turn.finishReason ?? ""];
  return joined(turn.error?.message ?? end, usageWords(turn.usage));
}

/**
 * What to read out when an answer came to its end; how it ended comes first.
 *
 * @param {Turn} turn
 * @param {string} answer  as it is read out
 * @returns {string}
 */
export function spokenEnd({ state, error, finishReason }, answer) {
  if (error) return answer ? `The answer broke off. ${error.message} It says so far: ${answer}` : `The answer failed. ${error.message}`;
  if (state === "cancelled") return answer ? `Stopped. The answer so far: ${answer}` : "Stopped.";
  const end = FINISH_WORDS[finishReason ?? ""];
  return [end && `${end}.`, answer ? `Answer: ${answer}` : "There is no answer."].filter(Boolean).join(" ");
}

/**
 * What to say below a stored answer: the same as when it ended.
 *
 * @param {StoredMessage} answer
 * @returns {string}
 */
export function storedWords({ meta }) {
  return joined(STATUS_WORDS[meta?.status] ?? FINISH_WORDS[meta?.finish_reason], usageWords(meta?.usage));
}

/**
 * @param {StoredMessage} answer
 * @returns {boolean}  whether something went wrong with it
 */
export const isBroken = ({ meta }) => meta?.status === "failed" || meta?.status === "interrupted";

/** @param {number} value */
export const number = (value) => value.toLocaleString("en");

/**
 * @param {Usage | null | undefined} usage
 * @returns {string}
 */
function usageWords(usage) {
  if (!usage || usage.total_tokens === 0) return "";
  const { prompt_tokens: prompt, completion_tokens: completion, total_tokens: total, source } = usage;
  const origin = source === "counted" ? ", estimated" : "";
  return `${number(total)} tokens (${number(prompt)} in, ${number(completion)} out${origin})`;
}

/** @param {(string | undefined)[]} parts */
const joined = (...parts) => parts.filter(Boolean).join(" · ");
