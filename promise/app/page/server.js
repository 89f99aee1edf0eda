// The server's answers as promises; knows no page. A failure is a ServerError with words for the user.

export class ServerError extends Error {
  constructor(words, status) {
    super(words);
    this.status = status;
  }
}

export const GONE = 410;

async function ask(path, { body = null, headers = {}, method = "POST" } = {}) {
  let answer;
  try {
    answer = await fetch(path, { method, body, headers: { "X-Promise": "1", ...headers } });
  } catch {
    throw new ServerError("The server does not answer. Does promise-app still run?", 0);
  }
  if (answer.ok) return answer;
  let words = `The server answered with status ${answer.status}.`;
  if (answer.headers.get("content-type")?.startsWith("application/json")) words = (await answer.json()).error ?? words;
  throw new ServerError(words, answer.status);
}

function asJson(step, more = {}) {
  const { points, box, choice, automatic } = step;
  const labels = points.map((p) => p.label);
  return JSON.stringify({ points: points.map((p) => [p.x, p.y]), labels, box, choice, automatic, ...more });
}

export const about = async () => (await ask("/api/about", { method: "GET" })).json();

export const openFile = async (file) => {
  const headers = { "X-Name": encodeURIComponent(file.name ?? "image"), "Content-Type": "application/octet-stream" };
  return (await ask("/api/images", { body: file, headers })).json();
};

export const openSample = async (number) => (await ask(`/api/samples/${number}`)).json();
export const automatic = async (key) => (await ask(`/api/images/${key}/automatic`)).json();
export const predict = async (key, step) => (await ask(`/api/images/${key}/predict`, { body: asJson(step) })).json();

// The answer as a file: "mask", "overlay" or "prompts".
export const file = async (key, step, kind, more = {}) =>
  (await ask(`/api/images/${key}/${kind}`, { body: asJson(step, more) })).blob();

// A beacon also arrives when the page is being closed.
export const close = (key) => navigator.sendBeacon(`/api/images/${key}/close`);
