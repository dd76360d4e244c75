// A live page asks its own server whether something new has been written.

const EVERY = 500;

async function ask(mark) {
  const answer = await fetch(`data?since=${encodeURIComponent(mark)}`, { cache: "no-store" });
  if (answer.status === 204) return null;
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

function follow() {
  const light = $("live");
  let mark = "";
  light.hidden = false;
  light.textContent = "connecting";
  const turn = async () => {
    try {
      const news = await ask(mark);
      light.classList.remove("lost");
      if (news) {
        mark = news.mark;
        if (news.payload) show(news.payload);
        else say(news.message);
        const lane = news.payload && news.payload.lanes[0];
        light.textContent = lane && lane.x.length ? `live, ${place(lane, lane.x.length - 1)}` : "live";
        if (news.payload && news.message) light.textContent = news.message;
      }
    } catch (error) {
      light.classList.add("lost");
      light.textContent = "the watcher has stopped; this is the last it showed";
    }
    setTimeout(turn, EVERY);
  };
  turn();
}
