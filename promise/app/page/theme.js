// Set the theme before the page is drawn: the stored one, else the system's.
(() => {
  const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  if (stored === "light" || stored === "dark") document.documentElement.dataset.theme = stored;
})();
