"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const page = one(".audit");
  const cards = all(".suspect");
  const storeKey = "scantling-audit-" + page.dataset.key;
  const words = { accept: "accepted", reject: "rejected" };
  const history = [];
  let current = null;

  /* the picture is in the file once and is shown twice */
  cards.forEach((card) => {
    const image = one("img", card);
    if (!image) return;
    const copy = image.cloneNode();
    copy.alt = "after the repair";
    all(".shot", card)[1].prepend(copy);
  });

  /* decisions */
  const stateOf = (card) => card.dataset.decision || "open";
  const mark = (card, decision) => {
    if (decision === "open") delete card.dataset.decision;
    else card.dataset.decision = decision;
    all("[data-decide]", card).forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.decide === decision)));
    one(".state", card).textContent = words[decision] || "";
  };
  const tally = () => {
    all("[data-count]").forEach((place) => { place.textContent = cards.filter((card) => stateOf(card) === place.dataset.count).length; });
    one("[data-undo]").disabled = history.length === 0;
  };
  const keep = () => {
    try {
      localStorage.setItem(storeKey, JSON.stringify(cards.map((card) => [card.dataset.record, stateOf(card)]).filter(([, state]) => state !== "open")));
    } catch { /* a browser that keeps nothing for files */ }
  };
  const recall = () => {
    try {
      const kept = new Map(JSON.parse(localStorage.getItem(storeKey) || "[]"));
      cards.forEach((card) => { if (words[kept.get(card.dataset.record)]) mark(card, kept.get(card.dataset.record)); });
    } catch { /* nothing was kept */ }
  };
  const decide = (card, decision) => {
    history.push([card, stateOf(card)]);
    mark(card, decision);
    tally();
    keep();
  };
  const undo = () => {
    const last = history.pop();
    if (!last) return;
    mark(...last);
    filter();
    go(last[0]);
    tally();
    keep();
  };

  /* where we are */
  const shown = () => cards.filter((card) => !card.hidden);
  const go = (card) => {
    if (!card) return;
    current?.classList.remove("current");
    current = card;
    card.classList.add("current");
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  };
  const step = (direction) => {
    const visible = shown();
    const at = visible.indexOf(current);
    go(visible[at < 0 ? 0 : Math.min(Math.max(at + direction, 0), visible.length - 1)]);
  };
  const decideHere = (decision) => {
    if (!current || current.hidden) return step(0);
    const visible = shown();
    const next = visible[visible.indexOf(current) + 1];
    decide(current, decision);
    filter();
    go(next || current);
  };

  /* filters */
  const filters = all("[data-filter]");
  const filter = () => {
    const wanted = Object.fromEntries(filters.map((select) => [select.dataset.filter, select.value]));
    cards.forEach((card) => {
      card.hidden = Boolean(
        (wanted.reason && card.dataset.reason !== wanted.reason) ||
        (wanted.category && card.dataset.category !== wanted.category) ||
        (wanted.state && stateOf(card) !== wanted.state));
    });
    one("[data-none]").hidden = cards.length === 0 || shown().length > 0;
  };
  filters.forEach((select) => select.addEventListener("change", () => { filter(); if (current?.hidden) step(0); }));

  /* the records go into the file as they are: ids may be larger than a number of this language */
  const decisionsText = () => {
    const decided = cards.filter((card) => card.dataset.decision);
    const lines = decided.map((card) => '{"decision": "' + card.dataset.decision + '", ' + card.dataset.record.slice(1));
    return page.dataset.head.slice(0, -1) + ', "decisions": [\n' + lines.join(",\n") + "\n]}\n";
  };
  const download = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([decisionsText()], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  all("[data-decide]").forEach((button) => button.addEventListener("click", () => {
    const card = button.closest(".suspect");
    go(card);
    decide(card, stateOf(card) === button.dataset.decide ? "open" : button.dataset.decide);
    filter();
  }));
  one("[data-undo]").addEventListener("click", undo);
  one("[data-download]").addEventListener("click", download);
  const keys = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    a: () => decideHere("accept"), r: () => decideHere("reject"), u: undo, d: download,
  };
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("select, input, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || typing || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  recall();
  filter();
  tally();
  if (cards.length) { current = cards[0]; current.classList.add("current"); }
})();
