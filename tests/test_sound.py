"""Sounds: decoding, spectrograms, folders, folds, augmentations, and trainings on them."""

import io
import json
import sys
import wave
from functools import partial
from pathlib import Path
from types import ModuleType

import datasets
import numpy as np
import pytest
import torch
from conftest import DATA, RELEASE

from diffstride import cli
from diffstride.training import augment, command_line, gin_registry, load_run
from diffstride.training.augment import seeded_generator
from diffstride.training.data import DataError, load_datasets
from diffstride.training.folds import check_fold
from diffstride.training.sound import log_mel, waveform
from diffstride.training.sound_decoding import SoundDecoder, decode_sound

soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
pytest.importorskip("torchaudio", reason="needs the extra audio")

needs_fsdd = pytest.mark.skipif(
    not (DATA / "fsdd" / "train.parquet").is_file(),
    reason="needs the spoken digits in Parquet: set DIFFSTRIDE_DATA to the folder of fsdd",
)
RATE = 8000


pytestmark = pytest.mark.usefixtures("quiet_datasets", "own_cache")


def sine(frequency=440.0, rate=RATE, seconds=0.5, height=0.5):
    times = np.arange(int(seconds * rate)) / rate
    return (height * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def encoded(samples, rate=RATE, form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype="PCM_16")
    return file.getvalue()


def write(path: Path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(samples, rate, path.suffix[1:].upper()))


def folder_of_sounds(root: Path, suffix=".wav", train=4, test=2, rate=RATE):
    for number, label in enumerate(("high", "low")):
        for part, count in (("train", train), ("test", test)):
            for index in range(count):
                tone = sine(300 + 1000 * number + 10 * index, rate)
                write(root / part / label / f"{index}{suffix}", tone, rate)
    return root


def load_folder(root: Path, **options):
    return load_datasets(root.name, root.parent, **({"batch_size": 2} | options))


def parquet_of_speakers(root: Path, speakers=("c", "a", "b", None), **columns):
    """Each speaker says each of two words once in each split."""
    root.mkdir(parents=True)
    for part in ("train", "test"):
        rows = [(who, word) for who in speakers for word in (0, 1)]
        tones = [encoded(sine(200 + 500 * word + 10 * n)) for n, (_, word) in enumerate(rows)]
        table = {
            "audio": [{"bytes": tone, "path": f"{n}.wav"} for n, tone in enumerate(tones)],
            "label": [word for _, word in rows],
            "speaker": [who for who, _ in rows],
        }
        datasets.Dataset.from_dict(table | columns).to_parquet(root / f"{part}.parquet")
    return root


# Decoding


@pytest.mark.parametrize("form", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_decoded_samples_are_those_that_were_written(form, rate):
    tone = np.round(sine(rate=rate) * 2**15).astype(np.int16)
    found, found_rate = decode_sound(encoded(tone, rate, form))
    assert found_rate == rate
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy() * 2**15, tone)


def test_wave_files_are_decoded_as_by_the_standard_library():
    content = encoded(sine())
    with wave.open(io.BytesIO(content)) as file:
        whole = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    assert np.array_equal(decode_sound(content)[0].numpy() * 2**15, whole)


def test_channels_are_averaged():
    left, right = sine(300), sine(500)
    found, _ = decode_sound(encoded(np.stack([left, right], 1)))
    assert np.abs(found.numpy() - (left + right) / 2).max() <= 2**-15


class TorchaudioOfAnotherTorch(ModuleType):
    def __getattr__(self, name):
        raise OSError("undefined symbol: torch_library_impl")


def test_a_torchaudio_of_another_torch_is_told_with_the_release_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", TorchaudioOfAnotherTorch("torchaudio"))
    release = ".".join(map(str, RELEASE))
    with pytest.raises(OSError, match=rf"pip install 'torchaudio=={release}\.\*' .*undefined"):
        waveform(torch.zeros(100), 2 * RATE, RATE)


def test_other_rates_are_resampled():
    at_16k = waveform(torch.from_numpy(sine(440, 16000)), 16000, samples=4000)[0]
    direct = torch.from_numpy(sine(440, 8000))
    # The ends of a cut tone ring in any resampler.
    assert (at_16k - direct)[100:-100].abs().max() < 0.005


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    tone = torch.from_numpy(sine(6000, 16000))
    assert waveform(tone, 16000, samples=4000)[0, 100:-100].abs().max() < 0.01


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 20])
def test_waveforms_are_padded_or_cropped_around_their_middle(length):
    sound = torch.arange(1.0, length + 1)
    found = waveform(sound, RATE, samples=8)[0]
    before = (8 - length) // 2
    if length <= 8:
        expected = torch.cat([torch.zeros(before), sound, torch.zeros(8 - length - before)])
    else:
        expected = sound[-before : 8 - before]
    assert torch.equal(found, expected)


def test_recordings_are_scaled_to_a_level_before_they_are_padded():
    tone = torch.from_numpy(sine(height=0.01))
    found = waveform(tone, RATE, level=0.1)
    assert found.square().mean().item() == pytest.approx(0.01 * len(tone) / 8000, rel=1e-4)
    assert waveform(torch.zeros(5), RATE, level=0.1).abs().max() == 0


# Spectrograms


@pytest.mark.parametrize("function", [log_mel, waveform])
def test_recordings_of_soundfile_are_taken_and_others_refused(function, tmp_path):
    write(tmp_path / "a.wav", sine())
    samples, rate = soundfile.read(tmp_path / "a.wav")
    recording = torch.from_numpy(samples)
    assert recording.dtype == torch.float64
    assert torch.equal(function(recording, rate), function(recording.float(), rate))
    assert function(recording, 2 * rate).dtype == torch.float32
    with pytest.raises(TypeError, match=r"got a ndarray: pass torch.from_numpy\(sound\)"):
        function(samples, rate)
    with pytest.raises(TypeError, match=r"got torch.int16: divide it by the largest value"):
        function((recording * 32768).to(torch.int16), rate)
    with pytest.raises(ValueError, match=r"mono, of shape \(N,\), but got \(4000, 2\): average"):
        function(torch.stack([recording, recording], 1), rate)


def test_the_spectrogram_is_that_of_a_slow_version():
    draws = torch.Generator().manual_seed(0)
    sound = torch.randn(1000, generator=draws, dtype=torch.float64)
    options = {"bands": 12, "frames": 8, "hop": 125, "window": 256, "fft_size": 512}
    found = log_mel(sound.float(), RATE, **options)[0]
    edges = torch.linspace(*(2595 * np.log10(1 + f / 700) for f in (50, 4000)), 14)
    edges = 700 * (10 ** (edges.double() / 2595) - 1)
    bins = torch.arange(257, dtype=torch.float64) * RATE / 512
    padded = torch.cat([torch.zeros(1000), sound, torch.zeros(1000)])
    for frame in range(8):
        middle = 1000 + frame * 125 + 62.5
        start = int(np.ceil(middle - 128))
        piece = padded[start : start + 256] * torch.hann_window(256, dtype=torch.float64)
        energy = torch.fft.rfft(piece, 512).abs().square()
        for band in range(12):
            low, centre, high = edges[band : band + 3]
            rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
            gain = torch.minimum(rising, falling).clamp_min(0)
            expected = (1 + (gain * energy).sum() / 1e-4).log()
            assert found[band, frame].item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_tone_lights_the_band_of_its_frequency_and_silence_is_zero():
    spectrogram = log_mel(torch.from_numpy(sine(1000, seconds=1.0)), RATE)
    assert spectrogram.shape == (1, 64, 64)
    # 1,000 Hz is mel 1,000. Filters are 31.8 mel apart, the first at 77.8 + 31.8.
    assert spectrogram[0].mean(1).argmax() == 28
    assert log_mel(torch.zeros(3000), RATE).abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 0}, "bands must be 1 or more, but got 0"),
        ({"highest": 5000.0}, "lowest and highest must be from 0 to half of sample_rate=8000"),
        ({"lowest": 300.0, "highest": 200.0}, "but got 300.0 and 200.0"),
        ({"fft_size": 128}, "fft_size must be at least window=256, but got 128"),
        ({"floor": 0.0}, "floor must be above 0"),
        ({"level": -1.0}, "level must be above 0, or None, but got -1.0"),
        ({"bands": 200}, "bands have no bin of a Fourier transform of 512 samples"),
    ],
)
def test_wrong_arguments_of_spectrograms_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        log_mel(torch.zeros(100), RATE, **options)


# Folders


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_a_folder_of_sounds_needs_nothing_else(tmp_path, suffix):
    data = load_folder(folder_of_sounds(tmp_path / "tones", suffix), sound_fn=None)
    assert data.class_names == ("high", "low")
    assert data.image_shape == (1, 64, 64)
    assert data.settings["sound_fn"] == "log_mel"
    assert len(data.train.dataset) == 8
    images, _ = next(iter(load_folder(tmp_path / "tones", batch_size=8).train))
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_sounds_keep_their_labels_and_samples(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    data = load_folder(root, sound_fn="waveform")
    assert data.image_shape == (1, 8000)
    known = {}
    for label, name in enumerate(data.class_names):
        for path in (root / "train" / name).iterdir():
            known[waveform(*decode_sound(path.read_bytes())).numpy().tobytes()] = label
    stored = data.train.dataset.first(8)
    assert [known[sound.numpy().tobytes()] for sound in stored.images] == stored.labels.tolist()


def test_sounds_decoded_for_each_batch_are_the_same(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    held, streamed = (
        load_folder(root, memory_limit=limit, augment_fn="shift_mask", num_workers=0)
        for limit in (2**30, 0)
    )
    assert not isinstance(streamed.train.dataset.images, torch.Tensor)
    assert held.settings == streamed.settings
    for (one, _), (other, _) in zip(held.train, streamed.train, strict=True):
        assert torch.equal(one, other)


def test_memory_limits_count_the_bytes_of_floats(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    size = 12 * 64 * 64 * 4
    kinds = [type(load_folder(root, memory_limit=n).train.dataset.images) for n in (size, size - 1)]
    assert kinds[0] is torch.Tensor
    assert kinds[1] is not torch.Tensor


def test_held_out_sounds_replace_the_test_split(tmp_path):
    root = folder_of_sounds(tmp_path / "tones", test=0, train=20)
    data = load_folder(root, holdout=10)
    assert [len(each.dataset) for each in (data.train, data.test)] == [30, 10]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"no sound at all", "Format not recognised"),
        (encoded(np.zeros(0, np.float32)), "0 samples"),
        (encoded(sine())[:2000], "2,000 bytes, of 8,044 that its head promises"),
        (encoded(sine(), form="FLAC")[:2000], ""),
    ],
)
def test_a_damaged_sound_is_an_error_with_its_file(tmp_path, content, reason):
    root = folder_of_sounds(tmp_path / "tones")
    (root / "train" / "low" / "1.wav").write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot decode row .*low/1\.wav.*{reason}.*: replace"):
        load_folder(root)


def test_sounds_that_are_not_finite_are_refused():
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0, np.nan]), RATE, format="WAV", subtype="FLOAT")
    with pytest.raises(DataError, match=r"cannot decode one \(samples that are not finite\)"):
        SoundDecoder()({"bytes": file.getvalue(), "path": None}, "one")


def test_an_image_among_sounds_is_an_error(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    (root / "test" / "high" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"cannot decode row .*x\.png"):
        load_folder(root)


def test_functions_that_return_something_else_are_refused(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    write(root / "train" / "low" / "3.wav", sine(seconds=0.4))
    with pytest.raises(DataError, match=r"has the shape .* others have .*: let sound_fn return"):
        load_folder(root, sound_fn=lambda sound, rate: sound[None])
    with pytest.raises(ValueError, match=r"sound_fn must return a floating-point tensor"):
        load_folder(root, sound_fn=lambda sound, rate: len(sound))
    with pytest.raises(ValueError, match=r"one of 'log_mel', 'waveform', but got 'mel'"):
        load_folder(root, sound_fn="mel")
    with pytest.raises(ValueError, match="image_size=8 is for images, but these are sounds"):
        load_folder(root, image_size=8)


# Folds


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_no_speaker_is_on_both_sides(tmp_path, fold):
    root = parquet_of_speakers(tmp_path / "words", ("c", "a", "b", "d"))
    options = {"fold": fold, "group_column": "speaker", "sound_fn": "waveform"}
    data = load_folder(root, **options)
    tested = {0: {"a", "d"}, 1: {"b"}, 2: {"c"}}[fold]
    by_sound = {}
    for part in ("train", "test"):
        rows = datasets.load_dataset("parquet", data_files=str(root / f"{part}.parquet"))["train"]
        for row in rows:
            key = waveform(*decode_sound(row["audio"]["bytes"])).numpy().tobytes()
            by_sound[key] = row["speaker"]
    sides = [
        [by_sound[sound.numpy().tobytes()] for sound in loader.dataset.first(99).images]
        for loader in (data.train, data.test)
    ]
    assert set(sides[1]) == tested
    assert set(sides[0]) == {"a", "b", "c", "d"} - tested
    assert sum(map(len, sides)) == 16  # the rows of both splits


def test_runs_of_different_folds_are_different_runs(tmp_path):
    root = parquet_of_speakers(tmp_path / "words", ("a", "b", "c"))
    one, other = (load_folder(root, fold=k, group_column="speaker").settings for k in (0, 1))
    assert one["fold"] == [0, 3, "speaker"]
    assert one["fold"] != other["fold"]
    assert "fold" not in load_folder(root, group_column="speaker").settings


def test_folds_that_cannot_be_made_are_refused(tmp_path):
    root = parquet_of_speakers(tmp_path / "words", ("a", "b"))
    by_speaker = {"fold": 0, "group_column": "speaker"}
    with pytest.raises(DataError, match=r"has 2 groups in column 'speaker', too few for folds=3"):
        load_folder(root, **by_speaker)
    with pytest.raises(DataError, match=r"has no column 'who', only 'audio', 'label', 'speaker'"):
        load_folder(root, fold=0, group_column="who")
    with pytest.raises(DataError, match=r"row 4 of 'gaps' has no 'speaker': correct"):
        load_folder(parquet_of_speakers(tmp_path / "gaps", ("a", "b", None)), **by_speaker)
    with pytest.raises(DataError, match="no columns to split by, so fold=0 cannot be made"):
        load_folder(folder_of_sounds(tmp_path / "tones"), **by_speaker)
    with pytest.raises(ValueError, match=r"holdout=2 with fold=0 would test on groups that are"):
        load_folder(
            parquet_of_speakers(tmp_path / "more", ("a", "b", "c")), holdout=2, **by_speaker
        )
    with pytest.raises(ValueError, match="fold=0 needs group_column"):
        check_fold(0, 3, None)
    with pytest.raises(ValueError, match="but got fold=3 with folds=3"):
        check_fold(3, 3, "speaker")


# Mistakes


def test_class_that_a_fold_lacks_is_named_with_its_fold(tmp_path):
    root = parquet_of_speakers(tmp_path / "words", ("a", "b", "c"), label=[0, 0, 0, 0, 1, 1])
    with pytest.raises(DataError, match=r"no sounds of class '1' to test on: use another number"):
        load_folder(root, fold=0, group_column="speaker")


def test_sound_functions_that_return_no_finite_numbers_are_refused(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    message = r"finite numbers, but log_energy returned -inf among others for row \d+ \(.*wav"

    def log_energy(sound, rate):
        return waveform(sound, rate).square().log()

    with pytest.raises(ValueError, match=message):
        load_folder(root, sound_fn=log_energy)


def test_sound_functions_may_have_parameters(tmp_path):
    gain = torch.ones(1, requires_grad=True)
    root = folder_of_sounds(tmp_path / "tones")
    data = load_folder(root, sound_fn=lambda sound, rate: gain * waveform(sound, rate))
    assert not data.mean.requires_grad
    assert not next(iter(data.train))[0].requires_grad


def test_images_are_no_sounds():
    with pytest.raises(DataError, match=r"of 'digits' is an image, not a sound: leave sound_fn"):
        load_datasets("digits", sound_fn="waveform")


def test_a_note_beside_sounds_is_what_cannot_be_decoded(tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    (root / "train" / "high" / "0.txt").write_text("notes")  # the first file
    with pytest.raises(DataError, match=r"0\.txt.*Format not recognised"):
        load_folder(root)


# Augmentations


SOUNDS = torch.rand(6, 1, 16, 20, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.mark.parametrize("name", ["shift", "shift_mask", "shift_noise"])
def test_augmentations_depend_on_the_generator_alone(name):
    function = augment.AUGMENTATIONS[name]
    before = SOUNDS.clone()
    first, again, other = (function(SOUNDS, seeded_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(SOUNDS, before)
    assert first.shape == SOUNDS.shape
    assert first.dtype == torch.float32


@pytest.mark.parametrize("shape", [(40, 1, 10), (40, 1, 3, 10)])
def test_shifts_move_sounds_and_leave_silence(shape):
    sounds = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 1
    seen = set()
    for sound, moved in zip(sounds, augment.shift(sounds, seeded_generator(0), 0.2), strict=True):
        for by in range(-2, 3):
            expected = torch.zeros_like(sound)
            expected[..., max(0, by) : 10 + min(0, by)] = sound[..., max(0, -by) : 10 - max(0, by)]
            if torch.equal(moved, expected):
                seen.add(by)
                break
        else:
            pytest.fail("no shift of up to 2 samples")
    assert seen == {-2, -1, 0, 1, 2}


def test_masks_hide_one_range_of_each_axis():
    masked = augment.mask(SOUNDS, seeded_generator(3), bands=5, frames=7)
    for sound, result in zip(SOUNDS, masked, strict=True):
        bands = (result[0] == 0).all(1)
        frames = (result[0] == 0).all(0)
        assert int(bands.sum()) <= 5
        assert int(frames.sum()) <= 7
        for hidden in (bands, frames):
            assert int(hidden.diff().sum()) <= 2  # one range
        shown = ~bands[:, None] & ~frames
        assert torch.equal(result[0], sound[0] * shown)
    assert (masked == 0).any()


def test_the_gain_of_a_map_is_that_of_the_sound():
    tone = torch.from_numpy(sine(height=0.05))
    maps = log_mel(tone, RATE)[None]
    generator = seeded_generator(0)
    found = augment.gain_of_log_mel(maps, generator, decibels=12.0)
    drawn = 2 * torch.rand(1, generator=seeded_generator(0)) - 1
    gain = 10 ** (12 * drawn / 20)
    torch.testing.assert_close(found[0], log_mel(gain * tone, RATE), rtol=1e-3, atol=1e-3)


def test_gains_and_noise_are_within_their_limits():
    sounds = torch.from_numpy(sine()).expand(50, 1, -1)
    louder = augment.gain_and_noise(sounds, seeded_generator(0), decibels=6.0, noise=0.0)
    gains = (louder * sounds).sum(2) / sounds.square().sum(2)
    assert 0.5 < gains.min() < 0.6
    assert 1.6 < gains.max() < 2.0
    noisy = augment.gain_and_noise(sounds, seeded_generator(0), decibels=0.0, noise=0.1)
    ratios = (noisy - sounds).square().mean(2).sqrt() / sounds.square().mean(2).sqrt()
    assert ratios.max() < 0.105
    assert ratios.max() > 0.08


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (augment.shift, {"share": 1.5}, "share must be from 0 to 1, but got 1.5"),
        (augment.mask, {"bands": -1}, "bands must be 0 or more, but got -1"),
        (augment.gain_and_noise, {"noise": -0.1}, "noise must be 0 or more, but got -0.1"),
        (augment.gain_of_log_mel, {"decibels": -1.0}, "decibels must be 0 or more"),
    ],
)
def test_wrong_arguments_of_augmentations_are_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(SOUNDS, seeded_generator(0), **options)


@pytest.mark.parametrize("name", ["crop_flip", "crop", "flip", "shift_mask"])
def test_augmentations_of_maps_are_refused_for_waveforms(name, tmp_path):
    root = folder_of_sounds(tmp_path / "tones")
    with pytest.raises(ValueError, match=r"got a batch of shape \(4, 1, 8000\): for waveforms use"):
        load_folder(root, sound_fn="waveform", augment_fn=name)


@pytest.mark.parametrize("name", ["shift_mask", "shift_noise"])
def test_augmentations_of_sounds_are_refused_for_images(name):
    with pytest.raises(ValueError, match=r"takes sounds.*but got uint8 of shape \(4, 1, 8, 8\)"):
        load_datasets("digits", augment_fn=name)


# Trainings


def command(*arguments):
    return cli.published_main(arguments)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("fsdd_mel.gin", "bf16-mixed"),
        ("fsdd_wave.gin", "32-true"),
        pytest.param("fsdd_mel.gin", "32-true", marks=pytest.mark.slow),
        pytest.param("fsdd_wave.gin", "bf16-mixed", marks=pytest.mark.slow),
    ],
)
def test_packaged_config_trains_on_tones_by_speakers(name, precision, gin_folder, capsys):
    parquet_of_speakers(gin_folder / "words", "abcdefgh")
    bindings = [
        "train.num_epochs = 1",
        f"train.precision = '{precision}'",
        "train.budget = 0.9",
        "resnet.resnet18.width = 4",
        "data.load_datasets.name = 'words'",
        "data.load_datasets.root = '.'",
        "data.load_datasets.batch_size = 10",
        "data.load_datasets.fold = 1",
    ]
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    assert command(f"--gin_config={name}", "--workdir=run", *flags) == 0
    assert "test accuracy" in capsys.readouterr().out
    summary = json.loads((gin_folder / "run" / "summary.json").read_text())
    assert summary["multiply_adds_end"] < 0.92 * summary["budget"] / 0.9
    axes = {"fsdd_mel.gin": 2, "fsdd_wave.gin": 1}[name]
    assert {len(strides) for strides in summary["strides"].values()} == {axes}


def test_convnet_trains_on_waveforms(gin_folder, capsys):
    folder_of_sounds(gin_folder / "tones")
    bindings = [
        "train.model = @convnet.ConvNet",
        "convnet.ConvNet.filters = [4, 8]",
        "convnet.ConvNet.strides = [4, 4]",
        "convnet.ConvNet.pooling_cls = @pooling.BlurPooling",
        "train.num_epochs = 1",
        "data.load_datasets.name = 'tones'",
        "data.load_datasets.root = '.'",
        "data.load_datasets.batch_size = 4",
    ]
    flags = [f"--gin_bindings={binding}" for binding in bindings]
    assert command("--gin_config=fsdd_wave.gin", "--workdir=run", *flags) == 0
    assert "test accuracy" in capsys.readouterr().out


@torch.no_grad()
def test_a_loaded_run_predicts_files_as_in_its_training(gin_folder):
    folder_of_sounds(gin_folder / "tones", train=20)
    bindings = [
        "train.num_epochs = 1",
        "train.accelerator = 'cpu'",
        "train.precision = '32-true'",
        "resnet.resnet18.width = 4",
        "sound.log_mel.bands = 32",
        "data.load_datasets.name = 'tones'",
        "data.load_datasets.root = '.'",
        "data.load_datasets.batch_size = 10",
    ]
    command_line.configure(["fsdd_mel.gin"], bindings, "run")
    gin_registry.train()
    data = load_datasets("tones", ".", sound_fn=partial(log_mel, bands=32, level=0.1), batch_size=4)
    run = load_run("run")
    command_line.configure(["digits.gin"])  # what another configuration binds does not matter
    files = sorted(gin_folder.glob("tones/test/*/*.wav"))
    assert run.sounds
    assert run.sound_fn is not None
    maps = torch.stack(
        [run.sound_fn(torch.from_numpy(x), r) for x, r in map(soundfile.read, files)]
    )
    assert maps.shape == (4, *run.image_shape) == (4, 1, 32, 64)
    expected, labels = next(iter(data.test))
    distances = torch.cdist(run.normalize(maps).flatten(1), expected.flatten(1))
    assert sorted(distances.argmin(0).tolist()) == [0, 1, 2, 3]  # the data set is shuffled
    assert distances.amin(0).max() < 0.01
    maps = maps[distances.argmin(0)]
    hits = run.network(run.normalize(maps.double())).argmax(1) == labels
    assert 100 * hits.float().mean().item() == run.summary["test_accuracy"]
    assert load_run("run", run.network).sound_fn is None  # its configuration is not read
    for wrong in (maps[0], maps.to(torch.uint8), maps.expand(4, 3, 32, 64)):
        with pytest.raises(ValueError, match=r"floating-point of shape \(B, 1, 32, 64\).*sound_fn"):
            run.normalize(wrong)


# The real spoken digits


@needs_fsdd
def test_spoken_digits_are_complete_by_both_protocols():
    options = {"root": DATA, "sound_fn": "waveform", "group_column": "speaker"}
    data = load_datasets("fsdd", **options)
    assert (len(data.train.dataset), len(data.test.dataset)) == (2700, 300)
    assert data.num_classes == 10
    data = load_datasets("fsdd", fold=2, **options)
    assert (len(data.train.dataset), len(data.test.dataset)) == (2000, 1000)
    assert data.test.dataset.labels.bincount().tolist() == [100] * 10
