"""The log of a run: metrics.jsonl in any case, Comet offline, online, out of reach and broken."""

import gzip
import json
import os
import random
import socket
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.run_log import RunLog


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's key, project or Comet file."""
    for name in list(os.environ):
        if name.startswith("COMET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def plot(tmp_path: Path) -> Path:
    path = tmp_path / "curves.png"
    assert cv2.imwrite(str(path), np.full((8, 8, 3), 77, np.uint8))
    return path


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def archive(folder: Path) -> dict:
    """What the one archive under the run's folder holds."""
    (path,) = (folder / "comet").iterdir()
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
        messages = [json.loads(line) for line in zipped.read("messages.json").splitlines()]
        files = {name: zipped.read(name) for name in zipped.namelist()}
    by_type: dict[str, list[dict]] = {}
    for message in messages:
        by_type.setdefault(message["type"], []).append(message["payload"])
    return {
        "experiment": json.loads(files["experiment.json"]),
        "files": files,
        "metrics": {
            (m["metric"]["metricName"], m["metric"]["epoch"]): m["metric"]["metricValue"]
            for m in by_type["metric_msg"]
            if m["metric"]["metricName"] != "process duration"
        },
        "params": {m["param"]["paramName"]: m["param"]["paramValue"] for m in by_type.get("parameter_msg", [])},
        "others": {m["key"]: m["value"] for m in by_type["log_other"]},
        "uploads": by_type.get("file_upload", []),
    }


def test_offline_archive_has_everything(tmp_path: Path, plot: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "a run"
    hook, drawn = sys.excepthook, random.getstate()
    with RunLog("train_qmm", folder, {"lr": 1e-3, "dataset": "synthetic"}) as log:
        log.metrics({"loss": 0.5, "grad_norm": float("inf")}, epoch=1)
        log.metrics({"loss": 0.25, "grad_norm": np.float32(2)}, epoch=2)
        log.comet("log_other", "checkpoint", str(folder / "epoch_2.pth"))
        log.comet("log_image", str(plot), name="training curves", overwrite=True)
    assert lines(folder) == [
        {"stage": "train_qmm", "epoch": 1, "loss": 0.5, "grad_norm": None},
        {"stage": "train_qmm", "epoch": 2, "loss": 0.25, "grad_norm": 2.0},
    ]
    logged = archive(folder)
    assert logged["experiment"]["tags"] == ["train_qmm"]
    assert logged["metrics"] == {("loss", 1): 0.5, ("loss", 2): 0.25, ("grad_norm", 2): 2.0}
    assert logged["params"]["lr"] == 1e-3 and logged["params"]["dataset"] == "synthetic"
    assert logged["others"]["checkpoint"].endswith("epoch_2.pth")
    (upload,) = logged["uploads"]
    assert upload["additional_params"]["figName"] == "training curves"
    assert logged["files"][upload["file_path"]] == plot.read_bytes()
    assert len(logged["files"]) == 3, "nothing was collected unasked"
    said = capfd.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("Comet: to upload this run: comet upload '") and line.endswith(".zip'")
    assert sys.excepthook is hook and random.getstate() == drawn


def test_resume_drops_what_is_repeated(tmp_path: Path) -> None:
    with RunLog("train_qmm", tmp_path, {}, comet="disabled") as log:
        for epoch in (1, 2, 3):
            log.metrics({"loss": 1 / epoch}, epoch)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "train_qmm", "epo')  # torn by a power loss
    with RunLog("train_qmm", tmp_path, {}, comet="offline", resume_epoch=3) as log:
        log.metrics({"loss": 7.0}, 3)
    assert [(line["epoch"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 7.0)]
    logged = archive(tmp_path)
    assert logged["metrics"] == {("loss", 1): 1.0, ("loss", 2): 0.5, ("loss", 3): 7.0}
    assert set(logged["experiment"]["tags"]) == {"train_qmm", "resumed"}
    with RunLog("train_qmm", tmp_path, {}, comet="disabled"):
        assert lines(tmp_path) == [], "a fresh run starts anew"


def test_disabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, plot: Path) -> None:
    monkeypatch.setitem(sys.modules, "comet_ml", None)  # importing it is an error now
    with RunLog("train_detr", tmp_path / "run", {"lr": 1.0}, comet="disabled") as log:
        log.metrics({"loss": 1.0}, 1)
        log.comet("log_other", "checkpoint", "epoch_1.pth")
        log.comet("log_image", str(plot), name="curves")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_broken_comet_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with RunLog("train_detr", tmp_path, {}) as log:
        log.metrics({"loss": 1.0}, 1)
        log.metrics({"loss": 2.0}, 2)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 2.0]
    assert capfd.readouterr().err.count("Comet failed") == 1


def test_error_in_the_run_passes_through(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLog("train_detr", tmp_path, {}, comet="offline") as log:
        log.metrics({"loss": 1.0}, 1)
        1 / 0  # noqa: B018
    assert archive(tmp_path)["metrics"] == {("loss", 1): 1.0}


def test_key_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("COMET_API_KEY", "a" * 25)
    monkeypatch.setenv("COMET_URL_OVERRIDE", "http://127.0.0.1:9/clientlib/")  # nothing listens there
    monkeypatch.setenv("COMET_PROJECT_NAME", "from-the-environment")
    with RunLog("train_qmm", tmp_path, {"lr": 1e-4}) as log:
        log.metrics({"loss": 1.0}, 1)
    logged = archive(tmp_path)
    assert logged["metrics"] == {("loss", 1): 1.0} and logged["params"]["lr"] == 1e-4
    assert logged["experiment"]["project_name"] == "from-the-environment"
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "no answer from http://127.0.0.1:9" in said[0] and "comet upload" in said[1]


class Server(BaseHTTPRequestHandler):
    """The little of Comet's server that a run needs."""

    seen: list[str]
    accepts: bool

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body
        self.seen.append(f"{self.path} {body.decode(errors='replace')}")
        run = {"runId": "r", "project_id": "p", "focusUrl": "http://127.0.0.1/e/", "lastOffset": 0}
        answer = {"version": "3.99.0", "msg": "", "code": 200} | (run if self.accepts else {})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> ThreadingHTTPServer:
    handler = type("Handler", (Server,), {"seen": [], "accepts": True})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("COMET_API_KEY", "a" * 25)
    monkeypatch.setenv("COMET_WORKSPACE", "team")
    monkeypatch.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{running.server_port}/clientlib/")
    yield running
    running.shutdown()
    running.server_close()


def test_online(tmp_path: Path, server: ThreadingHTTPServer, plot: Path, capfd: pytest.CaptureFixture) -> None:
    with RunLog("train_qmm", tmp_path, {"lr": 0.125}) as log:
        log.metrics({"loss": 0.375}, 1)
        log.comet("log_image", str(plot), name="training curves", overwrite=True)
    seen = server.RequestHandlerClass.seen
    (created,) = [text for text in seen if "/logger/add/run" in text]
    assert '"teamName": "team"' in created
    for path, content in (
        ("experiment/metric", "0.375"),
        ("experiment/parameter", "0.125"),
        ("tags", "train_qmm"),
        ("visualizations/upload", "figName=training"),
    ):
        assert any(path in text and content in text for text in seen), path
    assert not list((tmp_path / "comet").iterdir())
    assert lines(tmp_path)[0]["loss"] == 0.375
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("Comet: http://127.0.0.1/e/")


def test_server_refuses(tmp_path: Path, server: ThreadingHTTPServer, capfd: pytest.CaptureFixture) -> None:
    server.RequestHandlerClass.accepts = False
    with RunLog("train_qmm", tmp_path, {}) as log:
        log.metrics({"loss": 1.0}, 1)
    assert archive(tmp_path)["metrics"] == {("loss", 1): 1.0}
    assert "did not accept" in capfd.readouterr().err


def test_server_lost_on_the_way(tmp_path: Path, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP", "CLEANING"):  # seconds that Comet waits, which a busy machine may need
        monkeypatch.setenv(f"COMET_TIMEOUT_{name}", "60")
    with RunLog("train_qmm", tmp_path, {"lr": 0.125}) as log:
        log.metrics({"loss": 1.0}, 1)
        server.shutdown()
        server.server_close()
        log.metrics({"loss": 2.0}, 2)
        until, connected = time.monotonic() + 60, log._experiment.streamer.has_connection_to_server
        while connected() and time.monotonic() < until:  # Comet sends in a thread, which load delays
            time.sleep(0.05)
        assert not connected()
    logged = archive(tmp_path)
    assert logged["metrics"] == {("loss", 1): 1.0, ("loss", 2): 2.0} and logged["params"]["lr"] == 0.125


@pytest.mark.slow
def test_a_server_that_never_answers_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("COMET_API_KEY", "a" * 25)
        monkeypatch.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{silent.getsockname()[1]}/clientlib/")
        began = time.monotonic()
        with RunLog("train_qmm", tmp_path, {}) as log:
            log.metrics({"loss": 1.0}, 1)
        assert time.monotonic() - began < 60
    assert archive(tmp_path)["metrics"] == {("loss", 1): 1.0}
