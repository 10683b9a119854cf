/** Asking the server: the key, its own words for what went wrong, and streams. */

let key = sessionStorage.getItem("dovetail.key") ?? "";
const waiting = new Set();

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const hasKey = () => key !== "";

export function setKey(value) {
  key = value.trim();
  if (key) sessionStorage.setItem("dovetail.key", key);
  else sessionStorage.removeItem("dovetail.key");
}

/** `wanted(message)` is called when the server wants a key, or another one. */
export function whenKeyWanted(wanted) {
  waiting.add(wanted);
}

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}), ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer", 0);
  }
  if (response.ok) return response;
  const failure = new ServerError(await words(response), response.status);
  if (response.status === 401) for (const wanted of waiting) wanted(failure.message);
  throw failure;
}

async function words(response) {
  try {
    const body = await response.json();
    return body.error?.message ?? body.message ?? `the server answered ${response.status}`;
  } catch {
    return `the server answered ${response.status}`;
  }
}

export async function getJson(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function postJson(path, body, signal) {
  return (await ask(path, { method: "POST", body: JSON.stringify(body), signal })).json();
}

/** The data of each server-sent event, as it comes; an error event is thrown in the server's words. */
export async function* stream(path, body, signal) {
  const response = await ask(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message ?? String(event.error), event.error.code);
      yield event;
    }
  }
}
