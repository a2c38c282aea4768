// What HTML cannot do: times in the viewer's zone, ages that tick, the log that follows, a few keys.
"use strict";
(() => {
  const two = (n) => String(n).padStart(2, "0");

  function local(at, brief) { // ISO order, in the viewer's zone; `brief` leaves today's date out
    const date = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    const seconds = at.getSeconds() || brief ? `:${two(at.getSeconds())}` : "";
    const time = `${two(at.getHours())}:${two(at.getMinutes())}${seconds}`;
    return brief && at.toDateString() === new Date().toDateString() ? time : `${date} ${time}`;
  }

  function duration(s) { // as present.duration on the server
    s = Math.max(s, 0);
    if (s < 9.95) return `${s.toFixed(1)} s`;
    s = Math.round(s);
    if (s < 60) return `${s} s`;
    const [big, small, unit, part] = s < 3600 ? [60, 1, "min", "s"] : s < 86400 ? [3600, 60, "h", "min"] : [86400, 3600, "d", "h"];
    const rest = Math.floor((s % big) / small);
    return `${Math.floor(s / big)} ${unit}` + (rest ? ` ${rest} ${part}` : "");
  }

  function relative(at) {
    const s = (Date.now() - at) / 1000;
    const size = Math.abs(s);
    const text = size < 60 ? duration(Math.round(size) || 0).replace(".0", "") : duration(size - (size % (size < 3600 ? 60 : 3600)));
    return s >= 0 ? (size < 1 ? "now" : `${text} ago`) : `in ${text}`;
  }

  function times(root) {
    for (const el of root.querySelectorAll("time[datetime]")) {
      const at = new Date(el.dateTime);
      const text = "rel" in el.dataset ? relative(at) : local(at, "brief" in el.dataset);
      if (el.textContent !== text) el.textContent = text;
    }
  }

  function stamp(root) { // when a counter's value was true
    for (const el of root.querySelectorAll("[data-count]")) el.countFrom = Date.now() - 1000 * parseFloat(el.dataset.count);
  }

  function tick() {
    if (document.hidden) return;
    for (const el of document.querySelectorAll("[data-count]")) el.textContent = duration((Date.now() - el.countFrom) / 1000);
    for (const el of document.querySelectorAll("time[data-rel]")) {
      const text = relative(new Date(el.dateTime));
      if (el.textContent !== text) el.textContent = text;
    }
  }

  function refresh() { stamp(document); times(document); follow(); }

  // --- the log: parts are fetched from where we are, while the page is open and the attempt may still write ---
  let log = null;
  async function follow() {
    const pre = document.getElementById("log-text");
    if (!pre) { log = null; return; }
    if (log && log.url === pre.dataset.url && log.pre === pre) return;
    const mine = (log = { url: pre.dataset.url, pre, next: 0 });
    pre.textContent = "";
    pre.dataset.note = "loading…";
    for (let wait = 0; log === mine && pre.isConnected;) {
      if (!document.hidden) {
        try {
          const answer = await fetch(`${mine.url}&from=${mine.next}`);
          const part = await answer.json();
          if (!answer.ok) throw new Error(part.error + (part.hint ? ` (${part.hint})` : ""));
          if (log !== mine) return;
          if (part.text) {
            pre.append(part.text);
            if (document.getElementById("follow")?.checked) pre.scrollTop = pre.scrollHeight;
          }
          mine.next = part.next;
          pre.dataset.note = part.complete ? "The attempt wrote nothing." : "Nothing written yet.";
          if (part.complete) return;
          wait = part.text ? 500 : 1500;
        } catch (e) {
          pre.dataset.note = String(e.message || e);
          wait = 5000;
        }
      }
      await new Promise((r) => setTimeout(r, wait || 500));
    }
  }

  // --- the little lamp ---
  function lamp(on) {
    const el = document.getElementById("live");
    if (!el) return;
    el.classList.toggle("on", on);
    el.firstElementChild.textContent = on ? "live" : "offline";
    el.title = on ? "this page follows what happens" : "not connected; trying again";
  }
  document.addEventListener("htmx:sse:after:connection", (e) => lamp((e.detail.connection.status ?? 200) < 400));
  document.addEventListener("htmx:sse:error", () => lamp(false));
  document.addEventListener("htmx:sse:close", () => lamp(false));

  // --- what went wrong, above the page that stays as it was; gone with the next answer that is none ---
  function notice(text) {
    const el = document.getElementById("notice");
    el.textContent = text;
    el.hidden = !text;
  }
  document.addEventListener("htmx:response:error", (e) => {
    const text = e.detail.ctx.text;
    try {
      const { error, hint } = JSON.parse(text);
      notice(hint ? `${error}: ${hint}` : error);
    } catch {
      notice(`the server answered ${e.detail.ctx.response.status}`);
    }
  });
  document.addEventListener("htmx:error", () => notice("the server does not answer; this page shows what it last knew"));
  document.addEventListener("htmx:after:swap", (e) => {
    if ((e.detail.ctx?.response?.status ?? 200) < 400) notice("");
    refresh();
  });

  // --- keys: / searches, g then d, r, f goes ---
  let going = 0;
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) return;
    if (e.key === "/") {
      const search = document.getElementById("search");
      if (search) { e.preventDefault(); search.focus(); }
    } else if (e.key === "g") {
      going = Date.now();
    } else if (Date.now() - going < 1200) {
      const to = { d: "/", r: "/runs", f: "/fleet" }[e.key];
      if (to) location.href = to;
      going = 0;
    }
  });

  document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  refresh();
  setInterval(tick, 1000);
})();
