"""What gpu_quarter_hour.py and ablate.py compute around a run, and the sets of benchmarks/robustness.py."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace

import ablate
import gpu_quarter_hour
import numpy as np
import pytest
import robustness

from frcrn_accel.train.config import read_config

RATE = 16_000


class TestFit:
    def test_seconds_are_in_the_ratio_of_the_weights(self):
        assert gpu_quarter_hour.fit([100, 100, 100], [1, 2, 1], 80) == pytest.approx([20, 40, 20])

    def test_what_a_source_lacks_goes_to_the_others(self):
        assert gpu_quarter_hour.fit([100, 10, 100], [1, 2, 1], 80) == pytest.approx([35, 10, 35])

    def test_all_of_it_if_there_is_room(self):
        assert gpu_quarter_hour.fit([100, 10], [1, 2], 1000) == pytest.approx([100, 10])


def test_losses_that_differ_are_named():
    expected = {"magnitude": 2.0, "si_sdr": -1.0, "loss": 1.0, "gradient_norm": 10.0}
    assert gpu_quarter_hour.compare(expected | {"magnitude": 2.05}, expected) == []
    assert len(gpu_quarter_hour.compare(expected | {"magnitude": 2.5}, expected)) == 1
    assert len(gpu_quarter_hour.compare(expected | {"magnitude": float("nan")}, expected)) == 1
    (wrong,) = gpu_quarter_hour.compare(expected | {"gradient_norm": 13.0}, expected)
    assert wrong == "gradient_norm is 13.0000, and 10.0000 on the CPU of the pack"


@pytest.mark.parametrize("size", [10, 100, 250])
def test_a_state_is_delivered_in_pieces_and_joined_again(tmp_path, monkeypatch, size):
    monkeypatch.setattr(gpu_quarter_hour, "PIECE_BYTES", 100)
    content = np.random.default_rng(0).bytes(size)
    (tmp_path / "last.pt").write_bytes(content)
    out = tmp_path / "out"
    out.mkdir()
    gpu_quarter_hour.deliver(tmp_path / "last.pt", out)
    assert len(list(out.iterdir())) == -(-size // 100)
    assert max(path.stat().st_size for path in out.iterdir()) <= 100
    gpu_quarter_hour.collect(Namespace(out=out, run=tmp_path / "run"))
    assert (tmp_path / "run" / "last.pt").read_bytes() == content
    if size > 100:
        next(out.iterdir()).unlink()
        with pytest.raises(SystemExit, match=r"last\.pt: \d pieces? of \d"):
            gpu_quarter_hour.collect(Namespace(out=out, run=tmp_path / "run"))


class TestSchedule:
    @pytest.fixture
    def config(self, training_data):
        config = read_config(training_data / "run.toml")
        return replace(config, optimisation=replace(config.optimisation, warmup_steps=40))

    def scheduled(self, config, folder, *, last):
        speed = {"step_s": 0.2, "graph": True}
        return gpu_quarter_hour.scheduled(config, folder, speed, 200.0, Namespace(last=last, clips=8)).optimisation

    def test_the_rate_does_not_fall_in_the_first_sitting(self, config, tmp_path):
        run = self.scheduled(config, tmp_path, last=False)
        assert run.warmup_steps == 40
        assert run.steps - run.decay_steps > 10 * 970  # never reached

    def test_it_falls_over_the_steps_that_fit_into_the_last_one(self, config, tmp_path):
        entries = [{"config": {}}, *({"step": i, "compute_s": 0.35, "data_s": 0.05} for i in (20, 40, 60))]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        run = self.scheduled(config, tmp_path, last=True)
        assert (run.warmup_steps, run.decay_steps, run.steps) == (0, 485, 60 + 485)

    def test_a_single_sitting_rises_and_falls(self, config, tmp_path):
        run = self.scheduled(config, tmp_path, last=True)
        assert (run.warmup_steps, run.decay_steps, run.steps) == (40, 930, 970)


def test_a_variation_changes_what_it_names():
    content = {"mixing": {"rumble": 0.1}, "optimisation": {"steps": 3}}
    assert ablate.varied(content, "base") == ("base", content)
    name, found = ablate.varied(content, "more:mixing.rumble=0.25,mixing.babble_voices=[3],loss.erb_exponent=1.0")
    assert name == "more"
    assert found == {
        "mixing": {"rumble": 0.25, "babble_voices": [3]},
        "optimisation": {"steps": 3},
        "loss": {"erb_exponent": 1.0},
    }
    assert content["mixing"] == {"rumble": 0.1}


def test_a_row_has_the_last_scores(tmp_path):
    entries = [{"step": step, "validation": {"si_sdr_db": step / 10, "loss": 2.0}} for step in (50, 100)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert ablate.row("a", tmp_path / "log.jsonl") == "| a | 100 | 10.000 |  |  |  |  | 2.000 |"


class TestRobustness:
    def speech(self):
        time_s = np.arange(4 * RATE) / RATE
        return (0.1 * np.sin(2 * np.pi * 300 * time_s) * (time_s % 1 < 0.5)).astype(np.float32)

    def test_rumble_is_5_db_above_the_speech_and_below_45_hz(self):
        speech = self.speech()
        rumble = robustness.with_rumble(speech, np.random.default_rng(0)) - speech
        power = np.abs(np.fft.rfft(rumble)) ** 2
        hz = np.fft.rfftfreq(len(rumble), 1 / RATE)
        assert 10 * np.log10(np.mean(rumble**2) / np.mean(speech**2)) == pytest.approx(5, abs=0.01)
        assert power[(hz > 4.9) & (hz < 45.1)].sum() > 0.9999 * power.sum()

    def test_a_bang_is_short_and_at_full_scale(self):
        speech = robustness.at_level(self.speech())
        power = speech[speech**2 > np.mean(speech**2)] ** 2
        assert 10 * np.log10(power.mean()) == pytest.approx(-26, abs=0.01)
        loud, bang = robustness.with_bang(speech, np.random.default_rng(0))
        assert np.abs(loud).max() == pytest.approx(1, abs=0.06)
        assert (bang.stop - bang.start) / RATE == pytest.approx(0.1)
        assert np.array_equal(np.delete(loud, np.r_[bang]), np.delete(speech, np.r_[bang]))
        louder = 1.122 * speech
        louder[bang] = 1
        assert robustness.change_db(speech, louder, bang) == pytest.approx(1, abs=0.01)
