// Talk to the console: commands by POST, state and every change by server-sent events.

const link = { lastHeard: 0 };

export async function post(path, body, { onError, type = "application/json" } = {}) {
  try {
    const raw = type !== "application/json";
    const response = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body: raw ? body : JSON.stringify(body ?? {}) });
    if (response.ok) return response.status === 204 ? null : await response.json().catch(() => null);
    const problem = await response.json().catch(() => ({ detail: response.statusText }));
    const detail = typeof problem.detail === "string" ? problem.detail : JSON.stringify(problem.detail);
    onError?.(detail);
  } catch {
    onError?.("The console does not answer.");
  }
  return undefined;
}

// The browser reconnects by itself (retry is in the stream); every connection begins with a snapshot.
export function listen(handlers, onLink) {
  const source = new EventSource("/api/events");
  for (const [kind, handle] of Object.entries(handlers)) {
    source.addEventListener(kind, (event) => { link.lastHeard = Date.now(); handle(JSON.parse(event.data)); });
  }
  source.addEventListener("open", () => onLink(true));
  source.addEventListener("error", () => {
    onLink(false);
    // A proxy's error page ends the source for good: begin again.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => listen(handlers, onLink), 1000);
  });
}
