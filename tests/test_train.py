from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from checkpoints import save_checkpoint
from frcrn_accel import Denoiser, MissingExtraError, ModelError, TrainingError
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.models import DYNAMIC, find_model, known_models

torch = pytest.importorskip("torch")

from frcrn_accel.network.checkpoint import load_checkpoint  # noqa: E402
from frcrn_accel.network.module import FRCRN  # noqa: E402
from frcrn_accel.quality.clips import read_clips  # noqa: E402
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO  # noqa: E402
from frcrn_accel.testing import random_weights  # noqa: E402
from frcrn_accel.train.batches import loader_errors  # noqa: E402
from frcrn_accel.train.config import Loss, Model, Optimisation, Source, read_config  # noqa: E402
from frcrn_accel.train.intelligibility import IntelligibilityLoss  # noqa: E402
from frcrn_accel.train.log import append_entry  # noqa: E402
from frcrn_accel.train.loss import DenoisingLoss  # noqa: E402
from frcrn_accel.train.optimiser import Muon, learning_rate_at  # noqa: E402
from frcrn_accel.train.perceptual import PerceptualDisturbance  # noqa: E402
from frcrn_accel.train.start import read_start, start_network  # noqa: E402
from frcrn_accel.train.state import CHECKPOINT  # noqa: E402
from frcrn_accel.train.step import Objective, Step  # noqa: E402
from frcrn_accel.train.team import Team, rows_of  # noqa: E402
from frcrn_accel.train.trainer import train  # noqa: E402

SPEECH_PARTS = ("si_sdr", "perceptual", "intelligibility")  # of the loss, where there is speech


@pytest.fixture(scope="module")
def whole_run(training_data, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted. It is on a CPU: a GPU adds in a different order each time."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train(read_config(training_data / "run.toml"), training_data, folder)
    return folder


class TestLoss:
    def test_parts_against_numpy(self):
        rng = np.random.default_rng(0)
        target = rng.standard_normal((2, 4096)).astype(np.float32) * 0.1
        estimate = target + rng.standard_normal((2, 4096)).astype(np.float32) * 0.02
        found = DenoisingLoss(Loss(1.0, 1.0, 1.0, 1.0))(torch.tensor(estimate), torch.tensor(target))
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)

        def compressed(audio):
            padded = np.pad(audio.astype(np.float64), ((0, 0), (256, 256)), mode="reflect")
            frames = np.lib.stride_tricks.sliding_window_view(padded, 512, axis=1)[:, ::128]
            spectrum = np.fft.rfft(frames * window)
            return spectrum * (np.abs(spectrum) ** 2 + 1e-6) ** ((0.3 - 1) / 2)

        a, b = compressed(estimate), compressed(target)
        assert float(found["complex_spectrum"]) == pytest.approx(np.mean(np.abs(a - b) ** 2), rel=1e-4)
        assert float(found["magnitude"]) == pytest.approx(np.mean((np.abs(a) - np.abs(b)) ** 2), rel=1e-4)
        scale = np.sum(estimate * target, 1, keepdims=True) / np.sum(target**2, 1, keepdims=True)
        ratio = np.sum((scale * target) ** 2, 1) / np.sum((estimate - scale * target) ** 2, 1)
        # The cap at 35 dB takes a little off below it too.
        expected_db = np.mean(10 * np.log10(1 / (1 / ratio + 10**-3.5 / scale[:, 0] ** 2)))
        assert -10 * float(found["si_sdr"]) == pytest.approx(expected_db, abs=0.01)
        assert float(found["loss"]) == pytest.approx(sum(float(found[name]) for name in found if name != "loss"))

    def test_silence_has_a_finite_gradient_and_counts_in_the_spectra_only(self):
        loss = DenoisingLoss(Loss())
        for level in (0.0, 0.1):
            estimate = (level * torch.randn(1, 4096)).requires_grad_()
            parts = loss(estimate, torch.zeros(1, 4096))
            parts["loss"].backward()
            assert [float(parts[name].detach()) for name in SPEECH_PARTS] == [0, 0, 0]
            assert torch.isfinite(estimate.grad).all()

    def test_half_of_the_weight_lies_below_1_khz_by_the_bandwidth_of_hearing(self):
        hz = np.arange(257) * 16_000 / 512
        for exponent, share in ((0.0, 0.125), (1.0, 0.47)):
            weights = DenoisingLoss(Loss(erb_exponent=exponent)).bins.numpy()[:, 0]
            assert weights.mean() == pytest.approx(1)
            assert weights[hz < 1000].sum() / weights.sum() == pytest.approx(share, abs=0.03)
            assert weights.min() > 0.25
            assert (np.diff(weights) <= 0).all()

    def test_an_error_at_low_frequencies_costs_more_by_the_bandwidth_of_hearing(self):
        time_s = torch.arange(16_000) / 16_000
        target = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
        costs = []
        for exponent in (0.0, 1.0):
            loss = DenoisingLoss(Loss(erb_exponent=exponent))
            parts = [loss(target + 0.01 * torch.sin(2 * torch.pi * hz * time_s), target) for hz in (300, 6000)]
            costs.append([float(found["magnitude"]) for found in parts])
        assert costs[0][0] == pytest.approx(costs[0][1], rel=0.5)
        assert costs[1][0] > 5 * costs[1][1]

    def test_the_perceptual_weight_changes_while_the_rate_falls(self):
        target = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
        loss = DenoisingLoss(Loss(perceptual=0.25, perceptual_at_end=0.75))
        found = []
        for share in (0.0, 0.5, 1.0):
            loss.fall(share)
            found.append(float(loss(target + 0.1, target)["perceptual"]))
        assert found[1] == pytest.approx(2 * found[0])
        assert found[2] == pytest.approx(3 * found[0])
        constant = DenoisingLoss(Loss())
        constant.fall(1.0)
        assert float(constant(target + 0.1, target)["perceptual"]) == pytest.approx(found[0])

    def test_half_of_a_batch_silent_counts_the_other_half(self):
        target = torch.randn(2, 16_000) * 0.1
        noisy = target + torch.randn(2, 16_000) * 0.05
        alone = DenoisingLoss(Loss())(noisy[:1], target[:1])
        target[1] = 0
        both = DenoisingLoss(Loss())(noisy, target)
        for name in SPEECH_PARTS:
            assert float(both[name]) == pytest.approx(float(alone[name]), rel=1e-5)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return max(read_clips(CALIBRATION_AUDIO, 16_000), key=lambda clip: len(clip.noisy)).noisy


@pytest.fixture(scope="module")
def versions(speech) -> list[np.ndarray]:
    """The speech in three kinds of noise at six levels."""
    rng = np.random.default_rng(0)
    white = rng.standard_normal(len(speech)).astype(np.float32) * speech.std()
    low = np.convolve(white, np.ones(16, np.float32) / 4, "same")
    shaped = white * np.abs(speech) / speech.std()
    return [speech + noise * 10 ** (-snr_db / 20) for noise in (white, low, shaped) for snr_db in range(0, 41, 8)]


class TestPerceptualDisturbance:
    def lost(self, versions, speech) -> np.ndarray:
        estimates = torch.tensor(np.stack(versions))
        return PerceptualDisturbance()(estimates, torch.tensor(speech).expand_as(estimates)).numpy()

    def test_equal_signals_lose_nothing(self, speech):
        (lost,) = self.lost([speech], speech)
        assert 0 <= lost < 0.01

    def test_more_noise_loses_more_at_any_level(self, speech, versions):
        lost = self.lost(versions, speech)
        for first in (0, 6, 12):
            assert (np.diff(lost[first : first + 6]) < 0).all()
        quiet = self.lost([0.01 * version for version in versions], 0.01 * speech)
        np.testing.assert_allclose(quiet, lost, rtol=1e-3, atol=1e-3)

    def test_added_sound_costs_more_than_missing_sound(self, speech):
        window = np.hanning(640).astype(np.float32)
        tone = np.zeros_like(speech)
        tone[::1600] = 0.1
        clicks = np.convolve(tone, window, "same")
        added, missing = self.lost([speech + clicks, speech], speech)[0], self.lost([speech], speech + clicks)[0]
        assert added > 1.2 * missing

    def test_it_correlates_with_pesq(self):
        """On speech with decreasing amounts of noise, and on the output of the packaged model."""
        pytest.importorskip("pesq")
        pytest.importorskip("onnxruntime")
        from frcrn_accel.quality import pesq_wb

        unmapped, lost = [], []
        with Denoiser(backend="ort", threads=1) as denoiser:
            for clip in read_clips(GATE_AUDIO, 16_000)[::2]:
                noise = clip.noisy - clip.clean
                less = [clip.clean + noise * 10 ** (-gain_db / 20) for gain_db in (0, 6, 12, 20)]
                versions = [*less, denoiser(clip.noisy, 16_000)]
                scores = np.array([pesq_wb(clip.clean, version) for version in versions])
                unmapped += list((3.8224 - np.log(4 / (scores - 0.999) - 1)) / 1.3669)
                lost += list(self.lost(versions, clip.clean))
        assert np.corrcoef(unmapped, lost)[0, 1] < -0.9


class TestIntelligibilityLoss:
    def test_it_agrees_with_pystoi(self, speech, versions):
        stoi = pytest.importorskip("pystoi").stoi
        expected = [1 - stoi(speech, version, 16_000) for version in versions]
        estimates = torch.tensor(np.stack(versions))
        found = IntelligibilityLoss()(estimates, torch.tensor(speech).expand_as(estimates)).numpy()
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert max(expected) > 0.2

    def test_silent_frames_do_not_count(self, speech):
        noisy = speech + 0.5 * speech.std() * np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
        alone = IntelligibilityLoss()(torch.tensor(noisy)[None], torch.tensor(speech)[None])
        silence = np.zeros(16_000, np.float32)
        later = [torch.tensor(np.concatenate([x, silence]))[None] for x in (noisy, speech)]
        assert float(IntelligibilityLoss()(*later)) == pytest.approx(float(alone), abs=2e-3)

    def test_too_little_speech_gives_zero(self):
        target = torch.zeros(1, 16_000)
        target[0, :2000] = 0.1 * torch.randn(2000)
        assert float(IntelligibilityLoss()(target + 0.1, target)) == 0


def muon_by_the_paper(parameters, gradients, rate, norm, decay):
    """Return the parameters after Muon or Adam steps, computed in float64 and one parameter at a time."""
    results = [p.double() for p in parameters]
    momentum, mean, square = ([torch.zeros_like(p) for p in results] for _ in range(3))
    for step, of_step in enumerate(gradients, start=1):
        total = torch.cat([g.double().flatten() for g in of_step]).norm()
        for i, gradient in enumerate(of_step):
            g = gradient.double() * min(1.0, norm / float(total))
            momentum[i] = 0.95 * momentum[i] + 0.05 * g
            mean[i] = 0.9 * mean[i] + 0.1 * g
            square[i] = 0.999 * square[i] + 0.001 * g**2
            if min(len(g), g[0].numel()) >= 16:
                x = (0.05 * g + 0.95 * momentum[i]).flatten(1)
                x = x / x.norm()
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                update = 0.2 * max(x.shape) ** 0.5 * x.view_as(g)
            else:
                update = mean[i] / (1 - 0.9**step) / ((square[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            results[i] = results[i] * (1 - rate * decay) - rate * update
    return results


class TestMuon:
    def network(self):
        torch.manual_seed(0)
        layers = [
            torch.nn.Linear(16, 20),
            torch.nn.Linear(20, 16),
            torch.nn.Conv2d(16, 20, (2, 3)),
            torch.nn.Linear(16, 4),
        ]
        return torch.nn.ModuleList(layers)

    def take_steps(self, network, optimiser, gradients, rate=0.1):
        for of_step in gradients:
            for parameter, gradient in zip(network.parameters(), of_step, strict=True):
                parameter.grad = gradient.clone()
            yield optimiser.step(torch.tensor(rate), 1.0)

    def gradients(self, network, steps):
        return [[torch.randn_like(p) for p in network.parameters()] for _ in range(steps)]

    def test_parameters_follow_the_papers(self):
        network = self.network()
        before = [p.detach().clone() for p in network.parameters()]
        gradients = self.gradients(network, 3)
        optimiser = Muon(network, weight_decay=0.01)
        norms = [float(norm) for norm, _ in self.take_steps(network, optimiser, gradients)]
        assert norms[0] == pytest.approx(float(torch.cat([g.flatten() for g in gradients[0]]).norm()))
        expected = muon_by_the_paper(before, gradients, 0.1, 1.0, 0.01)
        for found, wanted in zip(network.parameters(), expected, strict=True):
            torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_gradient_that_is_not_finite_changes_nothing(self, value):
        network = self.network()
        optimiser = Muon(network, weight_decay=0.01)
        first, second = self.gradients(network, 2)
        damaged = [g.clone() for g in first]
        damaged[2][0] = value
        list(self.take_steps(network, optimiser, [first]))
        before = [value.clone() for value in (*network.parameters(), *optimiser.state_dict().values())]
        ((_, taken),) = self.take_steps(network, optimiser, [damaged])
        assert float(taken) == 0
        after = [*network.parameters(), *optimiser.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        ((_, taken),) = self.take_steps(network, optimiser, [second])
        assert float(taken) == 1


def test_the_learning_rate_rises_stays_and_falls():
    run = Optimisation(steps=100, learning_rate=2.0, warmup_steps=10, decay_steps=20)
    rates = [learning_rate_at(step, run) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:81] == [2.0] * 72
    assert rates[90] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.02
    assert np.all(np.diff(rates[80:]) < 0)


class TestTraining:
    def test_a_run_gives_a_checkpoint_and_a_log(self, training_data, tmp_path):
        shown = []
        done = train(
            read_config(training_data / "run.toml"),
            training_data,
            tmp_path / "run",
            show=lambda *entry: shown.append(entry),
        )
        assert done == 6
        checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
        assert (checkpoint.config.channels, checkpoint.config.unets) == (8, 1)
        entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert entries[0]["config"]["mixing"]["clip_s"] == 0.5
        assert [entry["step"] for entry in entries if "validation" in entry] == [3, 6]
        assert [step for step, entry in shown if "compute_s" in entry] == [6]
        assert np.isfinite(entries[-1]["validation"]["si_sdr_db"])

    def test_it_learns(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        run = replace(config.optimisation, steps=24, learning_rate=5e-3, validate_every_steps=4, ema_decay=0.5)
        train(replace(config, optimisation=run), training_data, tmp_path)
        entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        losses = [entry["validation"]["loss"] for entry in entries if "validation" in entry]
        assert losses[-1] < 0.95 * losses[0]

    @pytest.mark.parametrize("stops", [[2], [4], [1, 3]])
    def test_a_resumed_run_gives_the_result_of_an_uninterrupted_one(
        self, training_data, whole_run, tmp_path, stops, monkeypatch
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        config = read_config(training_data / "run.toml")
        for stop in stops:
            _train_up_to(stop, config, training_data, tmp_path)
        train(config, training_data, tmp_path)
        whole, parts = (load_checkpoint(folder / "checkpoint.pt").weights for folder in (whole_run, tmp_path))
        for key in whole:
            assert np.array_equal(whole[key], parts[key]), key
        steps = [
            [json.loads(line).get("step") for line in (folder / "log.jsonl").read_text().splitlines()]
            for folder in (whole_run, tmp_path)
        ]
        assert steps[0][-1] == steps[1][-1] == 6
        assert steps[1] == sorted(steps[1], key=lambda step: step or 0)

    def test_the_state_is_saved_by_the_clock_too(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        often = replace(config.optimisation, save_every_s=1e-9)
        _train_up_to(2, replace(config, optimisation=often), training_data, tmp_path)
        assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2

    def test_minutes_limit_a_sitting(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        assert train(config, training_data, tmp_path, minutes=0) == 1
        assert train(config, training_data, tmp_path, minutes=0) == 2
        assert load_checkpoint(tmp_path / "checkpoint.pt").config.channels == 8

    def test_a_last_line_that_a_kill_cut_short_is_dropped(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        train(config, training_data, tmp_path, minutes=0)
        with (tmp_path / "log.jsonl").open("a") as log:
            log.write('{"step": 1, "lo')
        train(config, training_data, tmp_path)
        entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert entries[-1]["step"] == 6

    def test_a_damaged_line_of_the_log_is_named(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        train(config, training_data, tmp_path, minutes=0)
        log = tmp_path / "log.jsonl"
        first, *others = log.read_bytes().splitlines(keepends=True)
        for damage in (b'{"step": 1, "lo\n', b"\0\0\0\n", b"\xff\n", b"3\n"):
            log.write_bytes(first + damage + b"".join(others))
            with pytest.raises(TrainingError, match=r"line 2 of '.*log\.jsonl' is .*: delete that line"):
                train(config, training_data, tmp_path)
        log.write_bytes(first + b"".join(others))
        assert train(config, training_data, tmp_path) == 6

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (
                RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
                r"DataLoader worker \(pid 7\) is killed",
            ),
            (ConnectionResetError(104, "Connection reset by peer"), r"\[Errno 104\] Connection reset by peer"),
            (EOFError(), "EOFError"),
        ],
    )
    def test_errors_of_a_loader_that_died(self, error, reason):
        with pytest.raises(TrainingError, match=rf"a process that makes examples died \({reason}"), loader_errors():
            raise error

    def test_a_loader_that_is_killed(self, training_data, tmp_path):
        text = (training_data / "run.toml").read_text()
        (tmp_path / "run.toml").write_text(
            text.replace("steps = 6", "steps = 1000").replace("validate_every_steps = 3", "validate_every_steps = 1")
        )
        code = (
            "import multiprocessing, sys; from pathlib import Path\n"
            "from frcrn_accel.errors import TrainingError\n"
            "from frcrn_accel.train.config import read_config\n"
            "from frcrn_accel.train.trainer import train\n"
            "def kill(step, entry):\n"
            "    [process.kill() for process in multiprocessing.active_children()]\n"
            "data, out = map(Path, sys.argv[1:])\n"
            "try: train(read_config(out / 'run.toml'), data, out, loaders=1, show=kill)\n"
            "except TrainingError as error: sys.exit(str(error))\n"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, str(training_data), str(tmp_path)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert found.returncode == 1
        assert found.stderr.startswith("a process that makes examples died (")
        assert found.stderr.endswith("run the same command to resume from the last save\n")

    @pytest.mark.parametrize(
        ("largest_bytes", "name"), [(20_000, r"audio/\w+\.npy"), (300_000, r"last\.pt"), (600_000, r"last\.pt")]
    )
    def test_a_full_disk(self, training_data, tmp_path, largest_bytes, name):
        """A limit on the size of files stands in for a full disk; its error differs."""
        resource = pytest.importorskip("resource")
        config = read_config(training_data / "run.toml")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, before[1]))
        try:
            with pytest.raises(TrainingError, match=rf"{name}' cannot be written: (File too large|.* requested and)"):
                train(config, training_data, tmp_path, minutes=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
        assert train(config, training_data, tmp_path) == 6

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
    def test_the_log_on_a_full_disk(self):
        with pytest.raises(TrainingError, match="'/dev/full' cannot be written: No space left on device"):
            append_entry(Path("/dev/full"), {"step": 1})

    def test_held_out_speech_that_is_silent(self, training_data, tmp_path):
        speech, rate = soundfile.read(training_data / "speech" / "a.wav")
        speech[-len(speech) // 4 :] = 0
        soundfile.write(tmp_path / "speech.wav", speech, rate)
        config = read_config(training_data / "run.toml")
        data = replace(config.data, speech=(Source(str(tmp_path / "speech.wav")),))
        train(replace(config, data=data), training_data, tmp_path / "run", minutes=0)

        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        validation = json.loads(lines[-1], parse_constant=refuse)["validation"]
        assert validation.keys().isdisjoint({"si_sdr_db", "pesq_wb"})
        assert [validation[name] for name in SPEECH_PARTS] == [0, 0, 0]
        assert validation["loss"] > 0

    def test_an_added_u_net_changes_nothing_at_first(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        start = str(save_checkpoint(random_weights(config.network), tmp_path / "one.pt"))
        one = start_network(replace(config, model=replace(config.model, start=start)), training_data).eval()
        two = start_network(replace(config, model=replace(config.model, start=start, unets=2)), training_data).eval()
        audio = 0.1 * torch.randn(1, 6400)
        with torch.no_grad():
            assert torch.equal(one(audio), two(audio))
        assert len(list(two.parameters())) == 2 * len(list(one.parameters()))

    def test_a_model_file_starts_the_same_run_as_its_checkpoint(self, training_data, tmp_path):
        pytest.importorskip("onnxruntime")
        from frcrn_accel.export import export_model

        config = read_config(training_data / "run.toml")
        save_checkpoint(random_weights(config.network), tmp_path / "mine.pt")
        export_model(tmp_path / "mine.pt", tmp_path / "mine.onnx")
        for suffix in ("pt", "onnx"):
            run = replace(config, model=replace(config.model, start=str(tmp_path / f"mine.{suffix}")))
            train(run, training_data, tmp_path / suffix, minutes=0)
        first, second = (torch.load(tmp_path / suffix / CHECKPOINT, weights_only=True) for suffix in ("pt", "onnx"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize("name", ["frcrn-small", "frcrn-small-stream"])
    def test_a_run_starts_from_a_packaged_model(self, training_data, name):
        pytest.importorskip("onnxruntime")
        config = read_config(training_data / "run.toml")
        started = start_network(replace(config, model=Model(channels=32, unets=2, start=name)), training_data).eval()
        noisy = 0.05 * np.random.default_rng(0).standard_normal((1, 32_000)).astype(np.float32)
        with torch.no_grad():
            found = started(torch.from_numpy(noisy)).numpy()
        expected = OrtBackend().load(find_model(name), threads=1).run(noisy)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())

    def test_a_name_comes_before_a_file_of_that_name(self, tmp_path):
        (tmp_path / "frcrn-small").write_bytes(b"damaged")
        assert read_start("frcrn-small", tmp_path).keys() == read_start("frcrn-small-stream", tmp_path).keys()
        with pytest.raises(ModelError, match="is not a file of plain tensors"):
            read_start("./frcrn-small", tmp_path)

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            ("frcrn-smal", "unknown model 'frcrn-smal': give one of frcrn-small, frcrn-small-stream"),
            ("frcrn-16k", "model 'frcrn-16k' is not in this package: get its checkpoint"),
            ("none.onnx", r"none\.onnx' cannot be read: No such file"),
            ("int8.onnx", "is quantized .* no longer holds the original weights"),
        ],
    )
    def test_models_that_cannot_be_started_from(self, tmp_path, start, message):
        shutil.copy(known_models()["frcrn-small"].variant_path(DYNAMIC), tmp_path / "int8.onnx")
        with pytest.raises(ModelError, match=message):
            read_start(start, tmp_path)

    def test_the_onnx_package_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(MissingExtraError, match=r"Training from a model file needs .*frcrn-accel\[train\]"):
            read_start("frcrn-small", tmp_path)

    def test_checkpoints_that_cannot_be_started_from(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        save_checkpoint(random_weights(config.network), training_data / "8.pt")
        wider = replace(config, model=replace(config.model, channels=16, start="8.pt"))
        with pytest.raises(TrainingError, match=r"has 8 channels and 1 U-Net\(s\), but the config asks for 16 and 1"):
            train(wider, training_data, tmp_path / "a")
        with pytest.raises(ModelError, match=r"none\.pt' cannot be read"):
            train(replace(config, model=replace(config.model, start="none.pt")), training_data, tmp_path / "b")

    def test_the_state_of_another_network_is_refused(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        train(config, training_data, tmp_path, minutes=0)
        with pytest.raises(TrainingError, match="is not the state of a run of this network"):
            train(replace(config, model=replace(config.model, channels=16)), training_data, tmp_path)
        (tmp_path / "last.pt").write_bytes(b"damaged")
        with pytest.raises(TrainingError, match="choose another run folder, or restore the file"):
            train(config, training_data, tmp_path)

    def test_divergence_ends_with_advice(self, training_data, tmp_path):
        config = read_config(training_data / "run.toml")
        run = replace(config.optimisation, steps=60, learning_rate=float("inf"), warmup_steps=1)
        with pytest.raises(TrainingError, match=r"diverged before step .* with a lower optimisation\.learning_rate"):
            train(replace(config, optimisation=run), training_data, tmp_path)

    def test_several_processes(self, training_data, tmp_path):
        code = (
            "import sys; from pathlib import Path\n"
            "from frcrn_accel.train.config import read_config\n"
            "from frcrn_accel.train.trainer import train\n"
            "data, out = map(Path, sys.argv[1:])\n"
            "train(read_config(data / 'run.toml'), data, out, threads=1, loaders=0)\n"
        )
        (tmp_path / "go.py").write_text(code)
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "go.py")]
        found = subprocess.run(
            [sys.executable, *command, str(training_data), str(tmp_path / "run")],
            # On CPUs even if there are GPUs: one GPU would not be enough.
            env={**os.environ, "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert found.returncode == 0, found.stderr
        steps = [json.loads(line).get("step") for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        assert steps == [None, 3, 6, 6]
        assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").config.channels == 8

    def test_more_processes_than_gpus(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setenv("LOCAL_RANK", "1")
        with pytest.raises(TrainingError, match="this machine has 1: start torchrun with --nproc-per-node=1"):
            Team()

    @pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
    @pytest.mark.parametrize("text", ["", "two", "1_0", "-1"])
    def test_an_environment_that_is_not_of_torchrun(self, monkeypatch, name, text):
        monkeypatch.setenv(name, text)
        with pytest.raises(TrainingError, match=f"variable {name} must be a whole number, got '{text}'"):
            Team()

    def test_rows_of_a_batch(self):
        assert [list(rows_of(6, rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
        with pytest.raises(TrainingError, match="batch_size 2 cannot be split evenly over 3 processes"):
            rows_of(2, 0, 3)


def _train_up_to(step: int, config, data: Path, out: Path) -> None:
    """Train this many more steps, then stop as a kill does: in the middle of the next one, with nothing saved."""

    class Killed(Exception):
        pass

    original, left = Muon.step, step

    def update(self, learning_rate, most_norm):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return original(self, learning_rate, most_norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Muon, "step", update)
        with pytest.raises(Killed):
            train(config, data, out)


def test_bf16_takes_steps(training_data, tmp_path):
    config = read_config(training_data / "run.toml")
    run = replace(
        config.optimisation,
        steps=2,
        warmup_steps=0,
        decay_steps=0,
        precision="bf16",
        validate_every_steps=2,
    )
    assert train(replace(config, optimisation=run), training_data, tmp_path) == 2


def test_fixed_statistics_stay_and_everything_else_is_trained(training_data, whole_run, tmp_path):
    config = read_config(training_data / "run.toml")
    start = whole_run / CHECKPOINT
    held = replace(
        config,
        model=replace(config.model, start=str(start)),
        optimisation=replace(config.optimisation, batch_statistics=False),
    )
    train(held, training_data, tmp_path)
    before, after = (torch.load(path, weights_only=True) for path in (start, tmp_path / CHECKPOINT))
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("running" in name), name


def test_training_with_running_means(training_data, whole_run, tmp_path):
    config = read_config(training_data / "run.toml")
    running = replace(config, model=replace(config.model, running_means=True))
    assert train(running, training_data, tmp_path) == config.optimisation.steps
    losses = [
        json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["validation"]["loss"]
        for folder in (whole_run, tmp_path)
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_each_step_draws_one_of_several_lookaheads(training_data, tmp_path, monkeypatch):
    config = read_config(training_data / "run.toml")
    seen = []
    original = FRCRN.mask

    def mask(self, spectrum):
        seen.append((self.training, self.lookahead))
        return original(self, spectrum)

    monkeypatch.setattr(FRCRN, "mask", mask)
    several = replace(config, model=replace(config.model, lookahead_frames=(3, 7)))
    steps = train(several, training_data, tmp_path / "several")
    trained = [lookahead for training, lookahead in seen if training]
    scored = [lookahead for training, lookahead in seen if not training]
    assert len(trained) == steps
    assert set(trained) == {3, 7}
    clips = config.validation.clips
    assert scored[:clips] == ([3, 7] * clips)[:clips]


@pytest.mark.parametrize("numbers", ["[]", "[8]", "[-1, 7]"])
def test_invalid_lookaheads(training_data, numbers):
    path = training_data / "lookahead.toml"
    text = (training_data / "run.toml").read_text()
    path.write_text(text.replace("channels = 8", f"channels = 8\nlookahead_frames = {numbers}"))
    with pytest.raises(TrainingError, match=r"model\.lookahead_frames must be one or more numbers from 0 to 7"):
        read_config(path)


def test_fixed_statistics_need_a_model_to_start_from(training_data):
    path = training_data / "held.toml"
    text = (training_data / "run.toml").read_text()
    path.write_text(text.replace("[validation]", "batch_statistics = false\n[validation]"))
    with pytest.raises(TrainingError, match=r"model\.start must be set if optimisation\.batch_statistics is false"):
        read_config(path)


def test_plot(whole_run, tmp_path):
    pytest.importorskip("matplotlib")
    from frcrn_accel.train.curve import plot_curve

    plot_curve(whole_run / "log.jsonl", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TrainingError, match=r"does not exist: .* is not the folder of a training run"):
        plot_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")


@pytest.mark.parametrize("held", [True, False])
def test_a_step_reads_no_number_from_its_device(training_data, held):
    # On the device "meta", which has no numbers, reading one is an error. A GPU would have to be waited for.
    config = read_config(training_data / "run.toml")
    meta = torch.device("meta")
    network, average = (start_network(config, training_data).to(meta).train() for _ in range(2))
    if held:
        network.hold_statistics()
    objective = Objective(network, config, meta).to(meta)
    step = Step(network, average, objective, Muon(network, 0.01), config, meta, record=False)
    step(*torch.zeros(2, 2, 8_000, device=meta), 0)
    with pytest.raises(RuntimeError, match="meta"):
        step.take()
