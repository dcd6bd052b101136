from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, TrainingError
from frcrn_accel.audio import TARGET_LEVEL
from frcrn_accel.models import find_model
from frcrn_accel.network.topology import HOP_SAMPLES
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.train.batches import prepare_examples
from frcrn_accel.train.config import Mixing, Optimisation, Source, read_config
from frcrn_accel.train.mixing import Mixer
from frcrn_accel.train.sources import Corpus, draw_weight, prepare_source

RATE = 16_000


def mixer(speech=None, noise=None, **mixing):
    """Make a mixer that does nothing but mix, unless `mixing` asks for more."""
    never = {name: 0.0 for name, hint in get_type_hints(Mixing).items() if hint is float}
    rng = np.random.default_rng(3)
    time_s = np.arange(4 * RATE) / RATE
    speech = np.sin(2 * np.pi * 220 * time_s) * (time_s % 1 < 0.5) if speech is None else speech
    noise = 0.1 * rng.standard_normal(4 * RATE) if noise is None else noise

    def corpus(audio):
        return Corpus([np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16)], [1.0], 0.1, held_out=False)

    return Mixer(corpus(speech), corpus(noise), Mixing(**(never | {"clip_s": 2.0} | mixing)))


def loud_level(audio):
    """Return the RMS of the samples whose power is above the mean."""
    power = np.square(audio, dtype=np.float64)
    return np.sqrt(power[power > power.mean()].mean())


def level_db(audio):
    return 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))


class TestConfig:
    def test_defaults(self, training_data):
        config = read_config(training_data / "run.toml")
        assert config.data.noise == (Source("noise.wav", 2.0),)
        assert config.mixing == Mixing(clip_s=0.5)
        assert config.optimisation.batch_size == 2
        assert config.optimisation.learning_rate == Optimisation(steps=1).learning_rate
        assert config.model.start is None

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("channels = 8", "channels = 12", r"model\.channels must be a multiple of 8"),
            ("channels = 8", "chanels = 8", r"unknown key 'model\.chanels': the keys are channels, unets, start"),
            ("steps = 6", "", r"'optimisation\.steps' is missing"),
            ("steps = 6", "steps = 3", r"optimisation\.steps must be at least warmup_steps \+ decay_steps"),
            ("steps = 6", "steps = 6.5", r"'optimisation\.steps' must be int, got 6\.5"),
            ("steps = 6", "steps = 6\nseed = -1", r"optimisation\.seed must be 0 or more"),
            ("steps = 6", "steps = 6\nlearning_rate = -1e-3", r"optimisation\.learning_rate must be above 0"),
            ("clip_s = 0.5", "eq_db = -3", r"mixing\.eq_db must be 0 or more"),
            ("clip_s = 0.5", 'clip_s = "long"', r"'mixing\.clip_s' must be float, got 'long'"),
            ("clip_s = 0.5", "clean = 1.5", r"mixing\.high_snr \+ clean \+ noise_only must be at most 1"),
            ("clip_s = 0.5", "snr_db = [1]", r"'mixing\.snr_db' must be a list of 2"),
            ("clip_s = 0.5", "reverberation = -1", r"mixing\.reverberation must be a probability, 0 to 1"),
            ('speech = [{ path = "speech" }]', "", r"'data\.speech' is missing"),
            ("weight = 2", "voices = 0", r"voices of 'noise\.wav' must be 1 or more"),
            (
                "weight = 2 }",
                'weight = 2 }, { path = "speech", voices = 3 }',
                r"voices of data\.noise must be given for all sources or for none",
            ),
            (
                "[validation]",
                "[validation.mixing]\nbangs = 2\n[validation]",
                r"validation\.mixing\.bangs must be a probability",
            ),
            ("clip_s = 0.5", "babble_voices = [5, 3]", r"mixing\.babble_voices must be 1 or more, least first"),
            ("[optimisation]", "[loss]\nerb_exponent = -1\n[optimisation]", r"loss\.erb_exponent must be 0 or more"),
            ('speech = [{ path = "speech" }]', "speech = [3]", r"'data\.speech\[0\]' must be a table"),
            ("[model]", "[model", "is not TOML"),
        ],
    )
    def test_mistakes_are_named(self, training_data, tmp_path, old, new, message):
        path = tmp_path / "run.toml"
        path.write_text((training_data / "run.toml").read_text().replace(old, new, 1))
        with pytest.raises(TrainingError, match=message) as caught:
            read_config(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("name", ["frcrn-small", "frcrn-small-stream", "full-size", "gpu-quarter-hour"])
    def test_the_examples_are_valid(self, name):
        config = read_config(Path(__file__).parents[1] / "examples" / "train" / f"{name}.toml")
        if config.model.start is not None:
            metadata = find_model(config.model.start).metadata
            assert (metadata.channels, metadata.unets) == (config.model.channels, config.model.unets)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(TrainingError, match="cannot be read: No such file"):
            read_config(tmp_path / "none.toml")


def test_validation_is_mixed_with_noises_of_its_own(training_data, tmp_path):
    config = read_config(training_data / "run.toml")
    _, plain = prepare_examples(config, training_data, tmp_path)
    changed = replace(config, mixing=replace(config.mixing, rumble=1.0))
    _, same = prepare_examples(changed, training_data, tmp_path)
    assert all(np.array_equal(a.noisy, b.noisy) for a, b in zip(plain, same, strict=True))
    own = replace(config.validation, mixing=Mixing(rumble=1.0, rumble_over_speech_db=(10, 10), clip_s=3))
    _, found = prepare_examples(replace(config, validation=own), training_data, tmp_path)
    for example in found:
        assert len(example.noisy) == round(config.validation.clip_s * RATE)
        power = np.abs(np.fft.rfft(example.noisy)) ** 2
        assert power[:50].sum() > 0.5 * power.sum()  # below 100 Hz


class TestCorpus:
    def test_a_folder_is_one_signal_and_channels_follow_each_other(self, tmp_path):
        (tmp_path / "in").mkdir()
        left, right = np.full(RATE, 0.25), np.full(RATE, -0.5)
        soundfile.write(tmp_path / "in" / "a.wav", np.stack([left, right], axis=1), RATE)
        soundfile.write(tmp_path / "in" / "b.flac", np.full(2 * 8_000, 0.125), 8_000)
        signal = prepare_source(Source("in"), tmp_path, tmp_path / "cache")
        assert len(signal) == pytest.approx(4 * RATE, abs=10)
        assert np.array_equal(signal[: 2 * RATE : RATE // 2], [8192, 8192, -16384, -16384])
        assert signal[3 * RATE] == pytest.approx(4096, abs=2)
        assert len(list((tmp_path / "cache").iterdir())) == 1
        again = prepare_source(Source("in"), tmp_path, tmp_path / "cache")
        assert np.array_equal(again, signal)
        soundfile.write(tmp_path / "in" / "a.wav", left, RATE)
        assert len(prepare_source(Source("in"), tmp_path, tmp_path / "cache")) < len(signal)

    def test_decoded_audio_is_mapped_as_it_is(self, tmp_path):
        signal = np.arange(2 * RATE).astype(np.int16)
        np.save(tmp_path / "a.npy", signal)
        assert np.array_equal(prepare_source(Source("a.npy"), tmp_path, tmp_path / "cache"), signal)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (np.zeros(2 * RATE, np.float32), r"float32 \(32000,\), not int16 \(samples,\)"),
            (np.zeros((2, RATE), np.int16), r"int16 \(2, 16000\), not int16 \(samples,\)"),
            (np.zeros(10, np.int16), "less than a second"),
            (None, "cannot be read as a NumPy array"),
        ],
    )
    def test_decoded_audio_of_another_kind(self, tmp_path, content, message):
        if content is None:
            (tmp_path / "a.npy").write_bytes(b"damaged")
        else:
            np.save(tmp_path / "a.npy", content)
        with pytest.raises(TrainingError, match=message):
            prepare_source(Source("a.npy"), tmp_path, tmp_path / "cache")

    def test_held_out_parts_are_never_trained_on(self):
        signal = np.concatenate([np.full(900, 1000), np.full(100, -1000)]).astype(np.int16)
        rng = np.random.default_rng(0)
        training, validation = (Corpus([signal], [1.0], 0.1, held_out=held_out) for held_out in (False, True))
        for _ in range(50):
            assert (training.draw(rng, 80) > 0).all()
            assert (validation.draw(rng, 80) < 0).all()

    def test_sources_with_voices_are_drawn_by_the_root_of_hours_times_voices(self):
        sources = [Source("a", voices=4), Source("b", voices=100, weight=0.5)]
        weights = [draw_weight(source, hours * 3600 * RATE) for source, hours in zip(sources, (1, 4), strict=True)]
        assert weights == pytest.approx([2, 10])
        assert draw_weight(Source("c", weight=3.0), 5 * RATE) == 3

    def test_silence_is_skipped(self):
        signal = np.concatenate([np.zeros(20_000), np.full(2_000, 9000)]).astype(np.int16)
        rng = np.random.default_rng(0)
        drawn = [Corpus([signal], [1.0], 0.01, held_out=False).draw(rng, 1000).any() for _ in range(40)]
        assert np.mean(drawn) > 0.8
        assert not Corpus([np.zeros(5000, np.int16)], [1.0], 0.1, held_out=False).draw(rng, 100).any()

    @pytest.mark.parametrize(
        ("name", "error", "message"),
        [
            ("none", TrainingError, "none' does not exist"),
            ("empty", TrainingError, "empty' has no audio in it"),
            ("short.wav", TrainingError, "less than a second"),
            ("text.wav", AudioError, r"text\.wav"),
            ("folder", TrainingError, r"b\.wav' holds no audio: remove it from the training data"),
        ],
    )
    def test_sources_without_audio(self, tmp_path, name, error, message):
        (tmp_path / "empty").mkdir()
        soundfile.write(tmp_path / "short.wav", np.full(100, 0.1), RATE)
        (tmp_path / "text.wav").write_text("no audio")
        (tmp_path / "folder").mkdir()
        soundfile.write(tmp_path / "folder" / "a.wav", np.full(2 * RATE, 0.1), RATE)
        soundfile.write(tmp_path / "folder" / "b.wav", np.zeros(0), RATE)
        with pytest.raises(error, match=message):
            prepare_source(Source(name), tmp_path, tmp_path / "cache")


class TestMixing:
    @pytest.mark.parametrize("snr_db", [-5.0, 10.0])
    def test_speech_has_the_wanted_level_over_the_noise(self, snr_db):
        example = mixer(snr_db=(snr_db, snr_db)).example((0,))
        noise = example.noisy - example.target
        assert 20 * np.log10(loud_level(example.target)) - level_db(noise) == pytest.approx(snr_db, abs=0.01)
        assert loud_level(example.noisy) == pytest.approx(TARGET_LEVEL, rel=1e-3)

    def test_the_same_seed_gives_the_same_example(self):
        kinds = ["pause", "speech_eq", "noise_eq", "reverberation", "speech_speed", "noise_speed", "noise_swell"]
        every = mixer(**dict.fromkeys(kinds, 1.0))
        first, again, other = (every.example(seed) for seed in ((1, 2), (1, 2), (1, 3)))
        assert np.array_equal(first.noisy, again.noisy)
        assert np.array_equal(first.target, again.target)
        assert not np.array_equal(first.noisy, other.noisy)

    def test_rows_of_a_batch_do_not_depend_on_each_other(self):
        whole = mixer().batch(0, 5, range(4))
        halves = [mixer().batch(0, 5, rows) for rows in (range(2), range(2, 4))]
        for i in range(2):
            assert np.array_equal(whole[i], np.concatenate([half[i] for half in halves]))
        assert not np.array_equal(whole[0], mixer().batch(0, 6, range(4))[0])

    def test_noise_alone_and_speech_alone(self):
        alone = mixer(noise_only=1.0).example((0,))
        assert alone.noisy.any()
        assert not alone.target.any()
        clean = mixer(clean=1.0).example((0,))
        assert clean.target.any()
        assert np.array_equal(clean.noisy, clean.target)

    @pytest.mark.parametrize(
        "kind",
        [
            "coloured",
            "babble",
            "tones",
            "keystrokes",
            "cries",
            "gusts",
            "speech_shaped",
            "second_noise",
            "noises_in_a_row",
            "noise_swell",
            "noise_speed",
            "noise_room",
            "noise_backwards",
        ],
    )
    def test_every_kind_of_noise_has_the_wanted_level(self, kind):
        example = mixer(**{kind: 1.0}, snr_db=(0, 0)).example((4,))
        noise = example.noisy - example.target
        assert 20 * np.log10(loud_level(example.target)) - level_db(noise) == pytest.approx(0, abs=0.01)

    @pytest.mark.parametrize("clip_s", [2.0, 1.003])
    def test_a_live_level_is_that_of_a_stream(self, clip_s):
        syllables = np.sin(2 * np.pi * 2 * np.arange(4 * RATE) / RATE) ** 2
        speech = 0.1 * syllables * np.random.default_rng(1).standard_normal(4 * RATE)
        plain, live = (
            mixer(speech=speech, clip_s=clip_s, live_level=share, level_jitter_db=0).example((5,)) for share in (0, 1)
        )
        hops = plain.noisy[: len(plain.noisy) // HOP_SAMPLES * HOP_SAMPLES].reshape(1, -1, HOP_SAMPLES)
        (gains,), _ = RunningLevel.silent(1).update(hops)
        assert np.ptp(20 * np.log10(gains)) > 1
        for before, after in ((plain.noisy, live.noisy), (plain.target, live.target)):
            assert len(after) == len(before)
            expected = before[: hops.size].reshape(-1, HOP_SAMPLES) * gains[:, None]
            np.testing.assert_allclose(after[: hops.size], expected.ravel(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("seed", range(4))
    def test_rumble_and_bangs_have_levels_of_their_own(self, seed):
        quiet = {"noise": 1e-4 * np.random.default_rng(0).standard_normal(4 * RATE), "snr_db": (60, 60)}
        rumble = mixer(rumble=1.0, rumble_over_speech_db=(10, 10), **quiet).example((seed,))
        added = rumble.noisy - rumble.target
        assert level_db(added) - 20 * np.log10(loud_level(rumble.target)) == pytest.approx(10, abs=0.1)
        bangs = mixer(bangs=1.0, bangs_over_speech_db=(20, 20), **quiet).example((seed,))
        peak = np.abs(bangs.noisy - bangs.target).max()
        assert 10 - 0.5 < 20 * np.log10(peak / loud_level(bangs.target)) < 20 + 0.5

    def test_noises_in_a_row_differ(self):
        tone = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)
        row = mixer(noise=tone, noises_in_a_row=1.0, gusts=0.5, noise_only=1.0)
        shares = []
        for seed in range(8):
            pieces = row.example((seed,)).noisy.reshape(10, -1)
            power = np.abs(np.fft.rfft(pieces)) ** 2
            at = 1000 * pieces.shape[1] // RATE
            shares.append(power[:, at - 2 : at + 3].sum(1) / power.sum(1))
        changes = [np.ptp(share) for share in shares]
        assert max(changes) > 0.9  # from wind to the tone or back
        assert sum(change > 0.5 for change in changes) >= 3

    def test_a_noise_that_is_played_backwards(self):
        falling = np.tile(np.linspace(1, 0, RATE), 4) * np.sign(np.random.default_rng(0).standard_normal(4 * RATE))
        for share, rises in ((0.0, False), (1.0, True)):
            noisy = np.abs(mixer(noise=falling, noise_only=1.0, noise_backwards=share).example((0,)).noisy)
            steps = np.diff(noisy.reshape(-1, 800).mean(1))
            assert (np.median(steps) > 0) == rises

    def test_more_voices_of_babble(self):
        drawn = []

        class Counting(Corpus):
            def draw(self, rng, samples):
                drawn.append(samples)
                return super().draw(rng, samples)

        corpus = Counting([np.full(4 * RATE, 900, np.int16)], [1.0], 0.1, held_out=False)
        mixing = Mixing(clip_s=0.2, babble=1.0, coloured=0, tones=0, second_noise=0, babble_voices=(12, 12))
        Mixer(corpus, corpus, mixing).example((0,))
        assert len(drawn) == 1 + 12

    def test_the_target_loses_its_floor_and_the_input_keeps_it(self):
        rng = np.random.default_rng(0)
        time_s = np.arange(4 * RATE) / RATE
        speech = 0.3 * np.sin(2 * np.pi * 220 * time_s) * (time_s % 1 < 0.5) + 0.01 * rng.standard_normal(4 * RATE)
        example = mixer(speech=speech, clean=1.0, lowered_floor=1.0, lowered_floor_db=(8, 8)).example((0,))
        floors = [np.quantile(np.abs(audio), 0.2) for audio in (example.target, example.noisy)]
        assert 20 * np.log10(floors[0] / floors[1]) == pytest.approx(-8, abs=2)
        assert level_db(example.target) == pytest.approx(level_db(example.noisy), abs=0.1)

    def test_the_target_has_the_first_reflections_only(self):
        clicks = np.zeros(4 * RATE)
        clicks[::RATE] = 1  # further apart than any room echoes
        example = mixer(speech=clicks, reverberation=1.0, clean=1.0).example((0,))
        early = round(0.05 * RATE)
        for at in np.flatnonzero(example.target == example.target.max()):
            assert np.abs(example.target - example.noisy)[at + 1 : at + early].max(initial=0) < 1e-6
            assert np.abs(example.target[at + early : at + 2 * early]).max(initial=0) < 1e-6

    def test_a_band_limit_applies_to_both(self):
        example = mixer(band_limit=1.0, speech=np.random.default_rng(0).standard_normal(4 * RATE) / 5).example((0,))
        for audio in (example.noisy, example.target):
            power = np.abs(np.fft.rfft(audio)) ** 2
            assert power[7500 * 2 :].sum() < 1e-5 * power.sum()

    def test_silence_stays_silence(self):
        nothing = np.zeros(4 * RATE)
        example = mixer(speech=nothing, noise=nothing).example((0,))
        assert not example.noisy.any()
        assert not example.target.any()
