// A video whose frames are drawn on a canvas together with what belongs to each frame.
//
// Picture and boxes are painted at once, and the picture's own time says which frame it is (WebCodecs), so that no
// playback rate parts them. Browsers grant that to videos of the page's own origin alone, which files beside a page on
// the disk are not; a video therefore comes in a script, from which the page makes a blob. Elsewhere the frame is the
// one that requestVideoFrameCallback reports. A clip without a video is played by the page's own clock on an empty ground.

const SETTLED = 500; // milliseconds after a seek in which a browser reports the frame that it shows

class Player {
  // draw(frame, picture): paints one frame; picture is null where there is none. changed(): play or pause.
  constructor(draw, changed) {
    this.draw = draw;
    this.changed = changed;
    this.media = null;
    this.clip = null;
    this.picture = null; // a copy of the frame that is shown, for switches that paint it again while playback goes on
    this.late = null; // the frame that was presented before its picture could be copied
    this.frame = 0;
    this.rate = 1;
    this.playing = false;
    this.wanted = null; // the frame of a seek under way
  }

  // Begin a clip {fps, n_frames}, without a picture yet.
  open(clip) {
    this.close();
    this.clip = clip;
    this.show(0);
  }

  // The clip's video, once its address is known; failed(): the browser cannot play it.
  attach(src, failed) {
    const { clip, frame } = this;
    const media = make("video", { muted: true, playsinline: true, preload: "auto" });
    media.muted = true;
    media.addEventListener("error", () => {
      if (this.media !== media) return;
      this.close();
      failed();
      this.show(this.wanted ?? this.frame);
    });
    media.addEventListener("ended", () => {
      this.pause();
      if (this.media === media) this.present(this.frame); // a slow machine may not have called for the last one
    });
    for (const event of ["loadeddata", "seeked"]) {
      media.addEventListener(event, () => {
        if (this.media !== media || media.seeking) return;
        if (this.wanted === this.frame) this.wanted = null; // nothing else will be presented
        if (this.late !== null) this.present(this.late);
        else if (this.wanted !== null) setTimeout(() => this.settle(media), SETTLED);
      });
    }
    this.media = media;
    const presented = (_, info) => {
      if (this.media !== media) return;
      this.present(Math.round(info.mediaTime * clip.fps));
      media.requestVideoFrameCallback(presented);
    };
    media.requestVideoFrameCallback(presented);
    media.src = src;
    media.playbackRate = this.rate;
    if (frame) this.seek(frame);
    if (this.playing) media.play();
  }

  // After quick seeks a browser may report no frame for the last one.
  settle(media) {
    if (this.media === media && !media.seeking && !this.playing && this.wanted !== null) this.present(this.wanted);
  }

  close() {
    this.pause();
    if (this.media) {
      const media = this.media;
      this.media = null;
      URL.revokeObjectURL(media.src);
      media.removeAttribute("src");
      media.load();
    }
    this.wanted = this.late = this.picture = null;
  }

  // Paint the picture that the browser shows now, which is of frame `announced` or, if playback has gone on since, a later one.
  present(announced) {
    const { media } = this;
    this.late = media.readyState < 2 ? announced : null;
    if (this.late !== null) return;
    let frame = announced, still = null;
    try {
      still = new VideoFrame(media);
      const exact = Math.round(still.timestamp * 1e-6 * this.clip.fps);
      if (exact > announced && exact <= announced + 1 + 4 * this.rate) frame = exact; // not every browser fills in the time
    } catch { /* of another origin, or no WebCodecs */ }
    this.picture ??= make("canvas", { width: media.videoWidth, height: media.videoHeight });
    this.picture.getContext("2d").drawImage(still ?? media, 0, 0);
    still?.close();
    // After quick steps the frame of an earlier one may come late: the next step goes on from what is wanted.
    if (!media.seeking && (this.playing || frame === this.wanted)) this.wanted = null;
    this.show(frame);
  }

  show(frame) {
    this.frame = Math.min(Math.max(frame, 0), Math.max(this.clip.n_frames - 1, 0));
    this.draw(this.frame, this.picture);
  }

  seek(frame) {
    frame = Math.min(Math.max(Math.round(frame), 0), Math.max(this.clip.n_frames - 1, 0));
    if (!this.media) {
      this.began = performance.now() - (1000 * frame) / this.clip.fps / this.rate;
      return this.show(frame);
    }
    this.wanted = frame;
    this.media.currentTime = (frame + 0.5) / this.clip.fps; // the middle of the frame: no rounding leads to another
  }

  step(by) {
    this.pause();
    this.seek((this.wanted ?? this.frame) + by);
  }

  play() {
    if (this.playing || !this.clip) return;
    const { n_frames: n, fps } = this.clip;
    if (this.frame >= n - 1 && this.wanted === null) this.seek(0);
    this.playing = true;
    this.wanted = null;
    if (this.media) this.media.play().catch(() => this.pause());
    this.began = performance.now() - (1000 * this.frame) / fps / this.rate;
    const tick = () => {
      if (!this.playing || this.media) return;
      const frame = Math.floor((((performance.now() - this.began) * this.rate) / 1000) * fps);
      if (frame !== this.frame) this.show(frame);
      if (frame >= n - 1) this.pause();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
    this.changed();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    if (this.media) this.media.pause();
    this.changed();
  }

  setRate(rate) {
    this.began = performance.now() - (1000 * this.frame) / (this.clip?.fps ?? 1) / rate;
    this.rate = rate;
    if (this.media) this.media.playbackRate = rate;
  }
}
