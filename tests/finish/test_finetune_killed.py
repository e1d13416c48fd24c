"""``nas finetune`` killed as the kernel kills, again and again, at random moments behind its first checkpoint."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from nas.finish.finetune import unfinished

NAS = [sys.executable, "-c", "from nas.cli.main import main; raise SystemExit(main())"]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_model(tmp_path, encoder_dir, movies):
    def command(out):
        options = ["--task", movies, "--epochs", "24", "--lr", "1e-3", "--batch-size", "4", "--quiet"]
        return [*NAS, "finetune", str(encoder_dir), "--out", str(out), *options]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    rng, out, kills = random.Random(time.time_ns()), tmp_path / "killed", 0
    before = {path: path.read_bytes() for path in encoder_dir.iterdir() if path.is_file()}
    for _ in range(4):
        process = subprocess.Popen([*command(out), "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while process.poll() is None and not (unfinished(out) / "learn" / "checkpoint").exists():
            time.sleep(0.01)
            assert time.monotonic() - started < 120
        time.sleep(rng.uniform(0, 2) if kills == 0 else rng.uniform(0, 8))  # later ones have to start first
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if out.exists():
            break
        assert not list(out.parent.glob(f"{out.name}/*"))
    assert kills
    if not out.exists():
        refused = subprocess.run(command(out), capture_output=True, text=True, check=False)
        assert (refused.returncode, "repeat the command with --resume" in refused.stderr) == (2, True)
        subprocess.run([*command(out), "--resume"], check=True, capture_output=True)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert (out / "model.onnx").read_bytes() == (tmp_path / "whole" / "model.onnx").read_bytes()
    told = [json.loads((folder / "finetune.json").read_text()) for folder in (tmp_path / "whole", out)]
    assert told[0] | {"elapsed_s": 0} == told[1] | {"elapsed_s": 0}
    assert not unfinished(out).exists()
    assert all(path.read_bytes() == content for path, content in before.items())
