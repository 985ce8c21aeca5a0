"""Whole ways of users, from a plain network to a deployed one, in other libraries' trainings."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import diffstride
from diffstride import CostBudget, MultiplyAdds, convert, freeze, load, parameter_groups, save

IMAGE = torch.zeros(1, 3, 32, 32)


def images(count, classes=4, size=32):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 3, size, size, generator=generator),
        torch.randint(classes, (count,), generator=generator),
    )


# A timm network in a plain loop ------------------------------------------------------------------

DEPLOY = """
import sys, timm, torch, diffstride
x, folder = torch.load(sys.argv[2]), sys.argv[1]
network = diffstride.load(timm.create_model("resnet18", num_classes=4), f"{folder}/net.pt").eval()
frozen = diffstride.freeze(network, x)
diffstride.save(frozen, f"{folder}/frozen.safetensors")
plain = timm.create_model("resnet18", num_classes=4)
frozen = diffstride.load(plain, f"{folder}/frozen.safetensors").eval()
torch.onnx.export(frozen, (x,), f"{folder}/net.onnx", dynamo=True, verbose=False)
torch.save({"loaded": network(x), "frozen": frozen(x)}, f"{folder}/outputs.pt")
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec:FutureWarning")
def test_timm_network_trains_in_a_plain_loop_and_is_deployed_from_its_file(tmp_path):
    timm = pytest.importorskip("timm")
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = convert(timm.create_model("resnet18", num_classes=4), torch.zeros(1, 3, 64, 64))
    optimizer = torch.optim.SGD(parameter_groups(network, 1e-4, 0.01), lr=0.02, momentum=0.9)
    CostBudget(network, torch.zeros(1, 3, 64, 64), "before").attach(optimizer)
    x, y = images(8, size=64)
    for start in (0, 4, 0):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[start : start + 4]), y[start : start + 4]).backward()
        optimizer.step()
    before = network.conversion.multiply_adds[""]
    assert 0.99 * before <= MultiplyAdds(network, x[:1]).value() <= before
    save(network, tmp_path / "net.pt")
    torch.save(x[:2], tmp_path / "x.pt")

    command = [sys.executable, "-W", "ignore", "-c", DEPLOY, str(tmp_path), str(tmp_path / "x.pt")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    outputs = torch.load(tmp_path / "outputs.pt")
    expected = network.eval()(x[:2]).detach()
    torch.testing.assert_close(outputs["loaded"], expected)
    torch.testing.assert_close(outputs["frozen"], expected, rtol=1e-4, atol=1e-4)
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run(None, {session.get_inputs()[0].name: x[:2].numpy()})
    np.testing.assert_allclose(from_onnx, expected.numpy(), rtol=1e-3, atol=1e-3)


# An own LightningModule --------------------------------------------------------------------------


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def lightning_module(pl):
    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = convert(small_network(), IMAGE)

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(parameter_groups(self.network, 1e-4), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    return Classifier()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_own_lightning_module_resumes_from_its_checkpoint(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")
    from diffstride.callbacks import BudgetCallback, StrideMonitor

    def train(folder, resume=None):
        saver = pl.callbacks.ModelCheckpoint(tmp_path / folder, "{epoch}", save_top_k=-1)
        callbacks = [BudgetCallback(IMAGE, "before", "network"), StrideMonitor("network"), saver]
        module = lightning_module(pl)
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        data = torch.utils.data.TensorDataset(*images(16))
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=resume)
        return module, trainer

    whole, trainer = train("whole")
    assert "multiply_adds" in trainer.callback_metrics
    resumed, _ = train("resumed", tmp_path / "whole" / "epoch=0.ckpt")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    before = whole.network.conversion.multiply_adds[""]
    assert MultiplyAdds(resumed.network, IMAGE).value() <= before
    frozen = freeze(resumed.network.eval(), IMAGE)
    save(frozen, tmp_path / "frozen.pt")
    x, _ = images(2)
    torch.testing.assert_close(load(small_network(), tmp_path / "frozen.pt").eval()(x), frozen(x))


# Hugging Face's Trainer --------------------------------------------------------------------------


def hugging_face_network(kind):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16, 32], "depths": [1, 1, 1], "num_labels": 4}
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, layer_type="basic", **sizes)
        return transformers.ResNetForImageClassification(config)
    config = transformers.ConvNextConfig(num_stages=3, **sizes)
    return transformers.ConvNextForImageClassification(config)


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("kind", ["resnet", pytest.param("convnext", marks=pytest.mark.slow)])
def test_hugging_face_trainer_resumes_and_saves_a_converted_network(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from diffstride.huggingface import from_pretrained

    x, y = images(16, size=64)
    data = [{"pixel_values": image, "labels": label} for image, label in zip(x, y, strict=True)]

    def train(resume=None):
        network = convert(hugging_face_network(kind), x[:1], patchify=True)
        optimizer = torch.optim.AdamW(parameter_groups(network, 0.05, 1e-4), lr=1e-3)
        budget = CostBudget(network, x[:1], "before" if kind == "resnet" else 0.9)
        budget.attach(optimizer)
        arguments = transformers.TrainingArguments(
            tmp_path,
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            network, arguments, train_dataset=data, optimizers=(optimizer, None)
        )
        trainer.train(resume_from_checkpoint=resume)
        assert 0.99 * budget.multiply_adds <= budget.cost.value() <= budget.multiply_adds
        return network

    whole = train()
    resumed = train(str(tmp_path / "checkpoint-2"))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    moved = [value for layer in diffstride.stride_layers(whole).values() for value in layer.strides]
    assert any(abs(float(value) - round(float(value))) > 1e-4 for value in moved)

    whole.eval()
    whole.save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "saved", tmp_path / "checkpoint-4"):
        loaded = from_pretrained(type(whole), path)
        torch.testing.assert_close(loaded(x).logits, whole(x).logits, rtol=0, atol=0)
    frozen = freeze(whole, x[:1])
    frozen.save_pretrained(tmp_path / "frozen")
    again = from_pretrained(type(whole), tmp_path / "frozen")
    torch.testing.assert_close(again(x).logits, frozen(x).logits, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_another_head_is_initialised(tmp_path):
    from diffstride.huggingface import from_pretrained

    network = convert(hugging_face_network("resnet"), torch.zeros(1, 3, 64, 64))
    network.save_pretrained(tmp_path)
    options = {"num_labels": 7, "ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded, info = from_pretrained(type(network), tmp_path, **options)
    assert type(loaded) is type(network)
    assert {"classifier.1.weight", "classifier.1.bias"} == {
        key for key, *_ in info["mismatched_keys"]
    }
    head = loaded.classifier[1]
    assert head.weight.shape == (7, 32)
    assert 0 < head.weight.abs().max() < 1
    assert not head.bias.abs().max() > 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries
def test_keys_that_transformers_renames_are_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    from diffstride.huggingface import from_pretrained

    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "num_attention_heads": [1] * 4}
    config = transformers.SegformerConfig(decoder_hidden_size=8, num_labels=3, **sizes)
    plain = transformers.SegformerForSemanticSegmentation(config).eval()
    x, _ = images(1, size=64)
    network = convert(plain, x)
    network.save_pretrained(tmp_path)
    loaded = from_pretrained(type(network), tmp_path)
    torch.testing.assert_close(loaded(x).logits, network(x).logits, rtol=0, atol=0)


def test_loading_without_a_recipe_says_what_to_do(tmp_path):
    transformers = pytest.importorskip("transformers")
    from diffstride.huggingface import from_pretrained

    network = hugging_face_network("resnet")
    network.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no recipe: if only a part of the network was"):
        from_pretrained(type(network), tmp_path)
    with pytest.raises(TypeError, match=r"must be the class of the saved network.*AutoModel"):
        from_pretrained(transformers.AutoModelForImageClassification, tmp_path)
