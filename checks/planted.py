"""Deliberate faults, each a replacement in one file, with the tests that must notice it."""

from typing import NamedTuple


class Fault(NamedTuple):
    """`old`, which is there once in `file`, becomes `new`; one of `tests` must then fail."""

    file: str
    old: str
    new: str
    tests: str


MODEL = [
    Fault("model/attention.py", "is_causal=mask is None", "is_causal=False", "model"),
    Fault("model/attention.py", ".tril()", ".triu()", "model"),
    Fault(
        "model/attention.py",
        "self.rope(q, positions_1T), self.rope(k, positions_1T)",
        "self.rope(q, positions_1T), k",
        "model",
    ),
    Fault("model/functional.py", "/ math.sqrt(q.shape[-1])", "/ q.shape[-1]", "model"),
    Fault("model/functional.py", "wide - wide.amax(dim, keepdim=True).detach()", "wide", "model"),
    Fault("model/functional.py", ".log() - chosen).mean()", ".log() - chosen).sum()", "model"),
    Fault("model/rope.py", "even * sin + odd * cos", "odd * cos - even * sin", "model"),
    Fault("model/rope.py", "dtype=torch.float64) / d_k)", "dtype=torch.float64) / (d_k - 1))", "model"),
    Fault(
        "model/layers.py",
        "square().mean(-1, keepdim=True) + self.eps)",
        "square().mean(-1, keepdim=True)) + self.eps",
        "model",
    ),
    Fault("model/layers.py", "silu(self.w1(x)) * self.w3(x)", "silu(self.w3(x)) * self.w1(x)", "model"),
    Fault("model/layers.py", "2 / (d_in + d_out)", "1 / (d_in + d_out)", "model"),
    Fault("model/layers.py", "outside[redrawn.abs() > 3 * std]", "outside[:0]", "model/test_layers.py"),
    Fault("model/block.py", "x = x + self.dropout(self.attn(", "x = self.dropout(self.attn(", "model"),
    Fault(
        "model/block.py", "self.ln2(x + self.dropout(self.ffn(x)))", "x + self.dropout(self.ffn(self.ln2(x)))", "model"
    ),
    Fault("model/config.py", "64 * -(-8 * self.d_model // (3 * 64))", "64 * (8 * self.d_model // (3 * 64))", "model"),
    Fault("model/transformer.py", "cache.lengths[:, None] + positions", "positions.expand(batch_size, -1)", "model"),
    Fault("model/transformer.py", "slots_S <= positions", "slots_S < positions", "model"),
    Fault(
        "model/transformer.py",
        "self.token_embeddings.weight = self.lm_head.weight",
        "self.token_embeddings.weight.data = self.lm_head.weight.data.clone()",
        "model",
    ),
    Fault(
        "model/transformer.py",
        "self.dropout(self.token_embeddings(token_ids))",
        "self.token_embeddings(token_ids)",
        "model",
    ),
    Fault("model/transformer.py", "return self.ln_final(x_BTD)", "return x_BTD", "model"),
]
OPTIMIZATION = [
    Fault("threads.py", "        torch.set_num_threads(threads)", "        pass", "optim/test_adamw.py"),
    Fault("optim/adamw.py", "math.sqrt(1 - beta2**step)", "math.sqrt(1 - beta2)", "optim"),
    Fault(
        "optim/adamw.py",
        "torch._foreach_mul_(parameters, 1 - lr * weight_decay)",
        "torch._foreach_mul_(parameters, 1 - weight_decay)",
        "optim",
    ),
    Fault("optim/adamw.py", "torch._foreach_add_(denominators, eps)\n", "pass\n", "optim"),
    Fault("optim/adamw.py", 'state["step"] += 1', 'state["step"] = 1', "optim"),
    Fault("optim/adamw.py", "if parameter.ndim >= 2]", "if parameter.ndim >= 1]", "optim"),
    Fault("optim/schedule.py", "(1 + math.cos(math.pi * progress))", "(1 - math.cos(math.pi * progress))", "optim"),
    Fault(
        "optim/schedule.py",
        "if it >= cosine_cycle_iters:\n        return min_learning_rate",
        "if it > 2 * cosine_cycle_iters:\n        return min_learning_rate",
        "optim",
    ),
    Fault(
        "optim/clip.py", "torch.clamp(max_l2_norm / (total + _EPS), max=1.0)", "max_l2_norm / (total + _EPS)", "optim"
    ),
    Fault(
        "optim/clip.py",
        "for (_, dtype, mesh, placements), gradients in buckets.items():",
        "for (_, dtype, mesh, placements), gradients in list(buckets.items())[:1]:",
        "optim",
    ),
    Fault("optim/sgd.py", "math.sqrt(t + 1)", "math.sqrt(t + 2)", "optim"),
    Fault("training/module.py", "step + 1,", "step,", "training/test_module.py"),
    Fault("training/module.py", "self.optimizer_config.max_l2_norm)", "1e9)", "training/test_module.py"),
    Fault(
        "training/module.py",
        "self.net.loss(inputs, targets).to(self._valid_sum.dtype) * count",
        "self.net.loss(inputs, targets).to(self._valid_sum.dtype) * 32",
        "training/test_module.py",
    ),
    Fault(
        "training/module.py",
        "[self.data.seed, batch_idx, self.global_rank]",
        "[self.data.seed, 0, self.global_rank]",
        "training",
    ),
]
DATA = [
    Fault("data/sampler.py", "windows[:, 1:].contiguous()", "windows[:, :-1].contiguous()", "data/test_sampler.py"),
    Fault("data/sampler.py", "default_rng([self.seed, step])", "default_rng([self.seed])", "data/test_sampler.py"),
    Fault("data/sampler.py", "default_rng([self.seed, step])", "default_rng(self.seed + step)", "data/test_sampler.py"),
    Fault(
        "data/sampler.py",
        "rng.integers(0, len(self.tokens) - self.context_length, size",
        "rng.integers(0, len(self.tokens) - self.context_length - 1, size",
        "data/test_sampler.py",
    ),
    Fault(
        "data/sampler.py",
        "(micro * self.part.world_size + self.part.rank) * self.part.rows",
        "self.part.rank * self.part.rows",
        "data/test_sampler.py",
    ),
    Fault(
        "data/sampler.py",
        'self.position = state["position"]',
        'self.position = state["position"] + 1',
        "data/test_sampler.py",
    ),
    Fault(
        "data/sampler.py",
        "np.arange(rank, windows, world_size",
        "np.arange(rank, windows - 1, world_size",
        "data/test_sampler.py",
    ),
    Fault(
        "data/tokens.py",
        "nats_per_token / math.log(2) / self.bytes_per_token",
        "nats_per_token / math.log(2) * self.bytes_per_token",
        "data/test_tokens.py",
    ),
    Fault("data/tokens.py", "if largest >= vocab_size:", "if largest > vocab_size:", "data/test_tokens.py"),
    Fault(
        "data/tokens.py",
        "or len(tokens) != expected.tokens:",
        "or len(tokens) < expected.tokens:",
        "data/test_tokens.py",
    ),
    Fault("data/datamodule.py", '            "seed": self.seed,\n', "", "data/test_datamodule.py"),
    Fault("data/encode.py", "MOST_UINT16_IDS = 1 << 16", "MOST_UINT16_IDS = 1 << 17", "data/test_encode.py"),
    Fault(
        "data/encode.py",
        "assert _write_header(file, dtype, tokens) == start\n        os.replace(",
        "assert _write_header(file, dtype, tokens) == start\n        os.link(",
        "data/test_encode.py",
    ),
]
RESUME = [
    Fault("training/resume.py", "    if conflicts:\n", "    if len(conflicts) > 1:\n", "training/test_resume.py"),
    Fault(
        "training/resume.py",
        'checkpoint["global_step"] >= now["max_steps"]',
        'checkpoint["global_step"] > now["max_steps"]',
        "training/test_resume.py",
    ),
    Fault("training/checkpoint.py", 'Path(f"{os.fspath(out)}.tmp")', "Path(out)", "training/test_checkpoint.py"),
    Fault(
        "training/checkpoint.py",
        '    optimizer.load_state_dict(state["optimizer"])\n',
        "",
        "training/test_checkpoint.py",
    ),
    Fault("training/module.py", "group.update(betas=config.betas, eps=config.eps)", "pass", "training"),
    Fault("training/module.py", "            torch.manual_seed(int(", "            (int(", "training"),
    Fault("training/metrics.py", '"tokens": self.tokens', '"tokens": 0', "training"),
    Fault(
        "training/metrics.py",
        '        self._finish()\n        return {"seconds"',
        '        return {"seconds"',
        "training/test_figures.py",
    ),
    Fault("training/precision.py", " and not is_asked", "", "training/test_precision.py"),
    Fault("training/agreement.py", "dist.ReduceOp.MAX", "dist.ReduceOp.MIN", "training/test_agreement.py"),
    Fault("training/data_parallel.py", "tensor.div_(dist.get_world_size())", "tensor", "training/test_fsdp.py"),
]
SAFETY = [
    Fault(
        "training/stopping.py",
        "        if (batch_idx + 1) % trainer.accumulate_grad_batches:\n            return\n",
        "",
        "training/test_trouble.py",
    ),
    Fault(
        "training/stopping.py",
        "            self.check(wait=True)\n            self._contents",
        "            self._contents",
        "training/test_background_writing.py",
    ),
    Fault(
        "training/stopping.py",
        "trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None",
        "pass",
        "training/test_agreement.py",
    ),
    Fault("training/module.py", "math.inf, steps).min()", "math.inf, steps).max()", "training/test_figures.py"),
    Fault("training/files.py", "            os.replace(temporary, path)\n", "", "training/test_files.py"),
    Fault("optim/clip.py", "return gradients if mesh is None else None", "return gradients", "optim/test_sharded.py"),
    Fault("data/locks.py", "FileLock(path) if", "nullcontext() if", "data/test_prepare.py"),
    Fault(
        "data/prepare.py",
        "    if not is_writable(folder):\n        return digest\n",
        "",
        "data/test_prepare.py",
    ),
    Fault("training/files.py", "if comment.startswith(_MARK) and", "if not comment and", "training/test_files.py"),
    Fault("training/runs.py", "newest = max(steps", "newest = min(steps", "training/test_runs.py"),
    Fault(
        "training/shards.py", "weights_only=True, mmap=True", "weights_only=False, mmap=True", "training/test_runs.py"
    ),
    Fault(
        "data/tokens.py",
        "if sampled_sha256(path) != expected.sampled_sha256:",
        "if len(sampled_sha256(path)) != len(expected.sampled_sha256):",
        "data/test_tokens.py",
    ),
    Fault(
        "tokenizer/files.py", "if first.startswith(_MARK) and", "if not first and", "tokenizer/test_tokenizer_files.py"
    ),
    Fault("data/digests.py", 'digest.update(f"{size} ".encode())', "pass", "data/test_tokens.py"),
    Fault("data/overlap.py", "int(counts[found].sum())", "int(found.sum())", "data/test_overlap.py"),
    Fault(
        "data/hub.py",
        "(digest := _digest(part, len(etag))) != etag:",
        "(digest := _digest(part, len(etag))) is None:",
        "data/test_sources.py",
    ),
]
TOKENIZER = [
    Fault("tokenizer/pretokenize.py", r"""+|\s+(?!\S)|\s+")""", r"""+|\s+")""", "tokenizer"),
    Fault(
        "tokenizer/pretokenize.py",
        "sorted(self.tokens, key=len, reverse=True)",
        "sorted(self.tokens, key=len)",
        "tokenizer",
    ),
    Fault("tokenizer/pretokenize.py", "len(text) - max(self._longest - 1, 0)", "len(text)", "tokenizer"),
    Fault("tokenizer/train.py", "token.translate(_COMPLEMENT)", "token", "tokenizer"),
    Fault("tokenizer/train.py", """.decode("latin-1") + "\\u0100\"""", """.decode("latin-1")""", "tokenizer"),
    Fault("tokenizer/train.py", "                pair_counts[b, follower] -= frequency\n", "", "tokenizer"),
    Fault("tokenizer/bpe.py", "heapq.heappush(heap, (new, before))", "pass", "tokenizer/test_tokenizer.py"),
    Fault(
        "tokenizer/bpe.py",
        "if ranks.get((ids[here], ids[right])) != rank:",
        "if ids[right] == NO_TOKEN:",
        "tokenizer/test_tokenizer.py",
    ),
    Fault(
        "tokenizer/bpe.py",
        'decode("utf-8", errors="replace")',
        'decode("utf-8", errors="ignore")',
        "tokenizer/test_tokenizer.py",
    ),
    Fault("tokenizer/files.py", 'range(ord("¡"), ord("¬") + 1)', 'range(ord("¡"), ord("¬") + 2)', "tokenizer"),
    Fault("tokenizer/kernels/scanner.py", "return last if last > begin else at", "return last", "tokenizer"),
    Fault("tokenizer/kernels/scanner.py", "return starts & (ALL >> U(63 - place))", "return starts", "tokenizer"),
    Fault("tokenizer/kernels/scanner.py", "if at + 3 <= end and", "if at + 2 <= end and", "tokenizer"),
    Fault("tokenizer/kernels/scanner.py", "least = 0xA0", "least = 0x80", "tokenizer"),
]
GENERATION = [
    Fault("generation/sampling.py", "order_BV[..., k:]", "order_BV[..., k - 1 :]", "generation/test_sampling.py"),
    Fault(
        "generation/sampling.py", "probs_BV.cumsum(-1) - probs_BV", "probs_BV.cumsum(-1)", "generation/test_sampling.py"
    ),
    Fault(
        "generation/sampling.py",
        "keepdim=True)) / sampling.temperature",
        "keepdim=True)) * sampling.temperature",
        "generation/test_sampling.py",
    ),
    Fault("generation/generate.py", "-max(1, context_length // 2)", "-max(1, context_length - 1)", "generation"),
    Fault("generation/generate.py", "if ids_B[row] not in stop_ids and", "if", "generation"),
]
ACCOUNTING = [
    Fault("accounting/parameters.py", "layers * 4 * width**2", "layers * 3 * width**2", "accounting"),
    Fault("accounting/flops.py", "layers * 2 * 2 * length**2 * width", "layers * 2 * length**2 * width", "accounting"),
    Fault("accounting/flops.py", "return 3 * forward_flops", "return 2 * forward_flops", "accounting"),
    Fault("accounting/scaling.py", "size * (members - 1) // members", "size", "accounting/test_scaling.py"),
    Fault(
        "accounting/scaling.py",
        "links.network * HOST / self.tensor_parallel",
        "links.network",
        "accounting/test_scaling.py",
    ),
]
FAULTS = {
    "model": MODEL,
    "optimization": OPTIMIZATION,
    "data": DATA,
    "resume": RESUME,
    "safety": SAFETY,
    "tokenizer": TOKENIZER,
    "generation": GENERATION,
    "accounting": ACCOUNTING,
}
