"""`pretrain` and what it calls, in the order and with the collectives of megatron.training.training."""

from __future__ import annotations

import sys
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.distributed import finalize_model_grads
from megatron.core.num_microbatches_calculator import get_num_microbatches, update_num_microbatches
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.moe.moe_utils import clear_aux_losses_tracker, track_moe_metrics
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.core.utils import get_model_config

from .async_utils import maybe_finalize_async_save
from .build import get_model, initialize_megatron, make_optimizer
from .checkpointing import load_checkpoint, save_checkpoint
from .data import build_pretraining_data_loader, build_train_valid_test_data_iterators, dummy_train_step  # noqa: F401
from .evaluation import evaluate
from .global_vars import get_args, get_timers
from .helpers import (
    disable_forward_pre_hook,
    enable_forward_pre_hook,
    num_floating_point_operations,
    reduce_max_stat_across_model_parallel_group,
    should_disable_forward_pre_hook,
)


def print_datetime(string: str) -> None:
    torch.distributed.barrier()
    print_rank_0(f"[{string}]")


def print_rank_last(message: str) -> None:
    if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
        print(message, flush=True)


def print_rank_0(message: str) -> None:
    if torch.distributed.get_rank() == 0:
        print(message, flush=True)


def pretrain(
    train_valid_test_dataset_provider: Any,
    model_provider: Any,
    model_type: Any,
    forward_step_func: Any,
    process_non_loss_data_func: Any = None,
    extra_args_provider: Any = None,
    args_defaults: Any = None,
) -> None:
    initialize_megatron(extra_args_provider=extra_args_provider, args_defaults=args_defaults)
    args, timers = get_args(), get_timers()
    timers("model-and-optimizer-setup", log_level=0).start(barrier=True)
    checkpointing_context: dict[str, Any] = {}
    model, optimizer, opt_param_scheduler = setup_model_and_optimizer(model_provider, model_type, checkpointing_context)
    timers("model-and-optimizer-setup").stop()
    print_datetime("after model, optimizer, and learning rate scheduler are built")
    config = get_model_config(model[0])
    if args.virtual_pipeline_model_parallel_size is not None:
        built = [build_train_valid_test_data_iterators(train_valid_test_dataset_provider) for _ in model]
        train_data_iterator, valid_data_iterator, test_data_iterator = (list(part) for part in zip(*built, strict=True))
    else:
        train_data_iterator, valid_data_iterator, test_data_iterator = build_train_valid_test_data_iterators(
            train_valid_test_dataset_provider
        )
    print_datetime("after dataloaders are built")
    iteration = 0
    if args.do_train and args.train_iters > 0:
        iteration, num_floating_point_operations_so_far = train(
            forward_step_func, model, optimizer, opt_param_scheduler, train_data_iterator, valid_data_iterator,
            process_non_loss_data_func, config, checkpointing_context, None,
        )  # fmt: skip
    print_datetime("after training is done")
    if args.save and iteration != 0 and iteration % args.save_interval != 0:
        save_checkpoint(
            iteration, model, optimizer, opt_param_scheduler, num_floating_point_operations_so_far,
            checkpointing_context, train_data_iterator=train_data_iterator,
        )  # fmt: skip
    if args.do_valid:
        prefix = f"iteration {iteration} on validation set"
        evaluate_and_print_results(
            prefix, forward_step_func, valid_data_iterator, model, iteration, process_non_loss_data_func, config
        )
    if args.do_test:
        prefix = f"iteration {iteration} on test set"
        evaluate_and_print_results(
            prefix, forward_step_func, test_data_iterator, model, iteration, process_non_loss_data_func, config
        )
    maybe_finalize_async_save(blocking=True, terminate=True)


def setup_model_and_optimizer(
    model_provider_func: Any, model_type: Any, checkpointing_context: Any = None
) -> tuple[Any, Any, Any]:
    args = get_args()
    model = get_model(model_provider_func)
    optimizer, opt_param_scheduler = make_optimizer(model)
    args.iteration = args.num_floating_point_operations_so_far = 0
    if args.load is not None:
        args.iteration, args.num_floating_point_operations_so_far = load_checkpoint(
            model, optimizer, opt_param_scheduler, checkpointing_context=checkpointing_context
        )
    return model, optimizer, opt_param_scheduler


def train_step(
    forward_step_func: Any, data_iterator: Any, model: Any, optimizer: Any, opt_param_scheduler: Any, config: Any,
    forward_backward_func: Any, iteration: int | None = None,
) -> Any:  # fmt: skip
    args = get_args()
    rerun_state_machine = get_rerun_state_machine()
    while rerun_state_machine.should_run_forward_backward(data_iterator):
        for model_chunk in model:
            model_chunk.zero_grad_buffer()
        optimizer.zero_grad()
        losses_reduced = forward_backward_func(
            forward_step_func=forward_step_func, data_iterator=data_iterator, model=model,
            num_microbatches=get_num_microbatches(), seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size, forward_only=False,
        )  # fmt: skip
    update_successful, grad_norm, _ = optimizer.step()
    grad_norm = reduce_max_stat_across_model_parallel_group(-1.0 if grad_norm is None else float(grad_norm))
    if update_successful:
        opt_param_scheduler.step(increment=get_num_microbatches() * args.micro_batch_size * args.data_parallel_size)
    loss_reduced = {}
    if mpu.is_pipeline_last_stage(ignore_virtual=True):
        value = torch.vstack([loss["lm loss"].view(-1) for loss in losses_reduced]).sum(dim=0)
        torch.distributed.all_reduce(value, group=mpu.get_data_parallel_group(with_context_parallel=True))
        loss_reduced = {"lm loss": value[0] / value[1]}
    return loss_reduced, int(not update_successful), False, False, 0, grad_norm, None, 0


def training_log(
    loss_dict: Any, total_loss_dict: Any, learning_rate: float, iteration: int, loss_scale: float,
    report_memory_flag: bool, skipped_iter: int, grad_norm: float, is_first_iteration: bool = False,
) -> bool:  # fmt: skip
    args, timers = get_args(), get_timers()
    learning_rate = reduce_max_stat_across_model_parallel_group(learning_rate)
    if args.num_experts is not None:
        names = {"aux_loss": "load_balancing_loss", "global_aux_loss": "global_load_balancing_loss"}
        track_moe_metrics(
            loss_scale=1 / get_num_microbatches(), iteration=iteration, total_loss_dict=loss_dict,
            force_initialize=True, num_layers=args.num_layers, moe_layer_freq=1,
            track_names=[*(names[kind] for kind in args.moe_router_load_balancing_type), "z_loss"],
        )  # fmt: skip
    if getattr(args, "mtp_num_layers", None):
        MTPLossLoggingHelper.track_mtp_metrics(1 / get_num_microbatches(), iteration, None, None, loss_dict)
    counts = {"advanced iterations": int(not skipped_iter), "skipped iterations": skipped_iter}
    for key, value in {**counts, **({} if skipped_iter else loss_dict)}.items():
        total_loss_dict[key] = total_loss_dict.get(key, 0 if key in counts else torch.zeros_like(value)) + value
    if iteration % args.log_interval == 0 or is_first_iteration:
        timers("interval-time").elapsed(barrier=True, reset=not is_first_iteration)
        line = f"iteration {iteration} lr {learning_rate:.6f} grad norm {grad_norm:.5f}"
        for key in sorted(total_loss_dict.keys() - counts.keys()):
            line += f" {key}: {float(total_loss_dict[key]) / max(1, total_loss_dict['advanced iterations']):.6E}"
            if not is_first_iteration:
                total_loss_dict[key] = torch.zeros_like(total_loss_dict[key])
        print_rank_last(f"{line} skipped {total_loss_dict['skipped iterations']}")
        if not is_first_iteration:
            total_loss_dict.update(dict.fromkeys(counts, 0))
        if report_memory_flag:
            print_rank_last(f"memory after iteration {iteration}")
            report_memory_flag = iteration < 2
    return report_memory_flag


def save_checkpoint_and_time(
    iteration: int, model: Any, optimizer: Any, opt_param_scheduler: Any, num_floating_point_operations_so_far: Any,
    checkpointing_context: Any, non_persistent_ckpt: bool = False, train_data_iterator: Any = None,
) -> None:  # fmt: skip
    timers = get_timers()
    timers("interval-time").stop()
    timer = "save-checkpoint-non-persistent" if non_persistent_ckpt else "save-checkpoint"
    timers(timer, log_level=0).start(barrier=True)
    if should_disable_forward_pre_hook(get_args()):
        for chunk in model:
            chunk.start_param_sync(force_sync=True)
    save_checkpoint(
        iteration, model, optimizer, opt_param_scheduler, num_floating_point_operations_so_far, checkpointing_context,
        non_persistent_ckpt=non_persistent_ckpt, train_data_iterator=train_data_iterator,
    )  # fmt: skip
    timers(timer).stop(barrier=True)
    timers("interval-time", log_level=0).start(barrier=True)


def train(
    forward_step_func: Any, model: Any, optimizer: Any, opt_param_scheduler: Any, train_data_iterator: Any,
    valid_data_iterator: Any, process_non_loss_data_func: Any, config: Any, checkpointing_context: Any,
    non_loss_data_func: Any, inference_model: Any = None,
) -> tuple[int, float]:  # fmt: skip
    args, timers = get_args(), get_timers()
    for model_module in model:
        model_module.train()
    total_loss_dict: dict[str, Any] = {}
    iteration = args.iteration
    rerun_state_machine = get_rerun_state_machine()
    if rerun_state_machine.current_iteration != iteration:
        rerun_state_machine.current_iteration = iteration
    num_floating_point_operations_so_far = args.num_floating_point_operations_so_far
    config.grad_scale_func = optimizer.scale_loss
    config.timers = timers
    if args.overlap_grad_reduce:
        assert config.no_sync_func is None, "config.no_sync_func must be None"
        config.no_sync_func = [model_chunk.no_sync for model_chunk in model]
        if len(model) == 1:
            config.no_sync_func = config.no_sync_func[0]
    if args.overlap_param_gather and args.align_param_gather:
        config.param_sync_func = [model_chunk.start_param_sync for model_chunk in model]
        if len(model) == 1:
            config.param_sync_func = config.param_sync_func[0]
    config.finalize_model_grads_func = finalize_model_grads
    timers("interval-time", log_level=0).start(barrier=True)
    print_datetime("before the start of training step")
    report_memory_flag, pre_hook_enabled, should_exit, exit_code, is_first_iteration = True, False, False, 0, True
    num_microbatches = get_num_microbatches()
    forward_backward_func = get_forward_backward_func()

    def get_e2e_base_metrics() -> dict[str, Any]:  # makes these variables cells, as in Megatron
        return {"iteration": iteration, "operations": num_floating_point_operations_so_far}

    assert get_e2e_base_metrics()["iteration"] == args.iteration
    start_iteration = iteration
    if should_disable_forward_pre_hook(args):
        disable_forward_pre_hook(model, param_sync=False)
        param_sync_func = config.param_sync_func
        config.param_sync_func = None
        pre_hook_enabled = False
    while iteration < args.train_iters:
        maybe_finalize_async_save(blocking=False)
        update_num_microbatches(args.consumed_train_samples, consistency_check=False)
        if get_num_microbatches() != num_microbatches and iteration != 0:
            assert get_num_microbatches() > num_microbatches, "number of microbatches should be increasing"
        num_microbatches = get_num_microbatches()
        update_num_microbatches(args.consumed_train_samples, consistency_check=True)
        if iteration in args.iterations_to_skip:
            dummy_train_step(train_data_iterator)
            if iteration == start_iteration:
                start_iteration = iteration + 1
            iteration += 1
            batch_size = mpu.get_data_parallel_world_size() * args.micro_batch_size * get_num_microbatches()
            args.consumed_train_samples += batch_size
            args.skipped_train_samples += batch_size
            continue
        args.curr_iteration = iteration
        loss_dict, skipped_iter, _, should_exit, exit_code, grad_norm, _, _ = train_step(
            forward_step_func, train_data_iterator, model, optimizer, opt_param_scheduler, config,
            forward_backward_func, iteration=iteration,
        )  # fmt: skip
        if should_exit:
            break
        if iteration == start_iteration:
            if skipped_iter:
                start_iteration = iteration + 1
            elif should_disable_forward_pre_hook(args):
                enable_forward_pre_hook(model)
                config.param_sync_func = param_sync_func
                pre_hook_enabled = True
        iteration += 1
        batch_size = mpu.get_data_parallel_world_size() * args.micro_batch_size * get_num_microbatches()
        args.consumed_train_samples += batch_size
        num_floating_point_operations_so_far += num_floating_point_operations(args, batch_size)
        report_memory_flag = training_log(
            loss_dict, total_loss_dict, max(group["lr"] for group in optimizer.param_groups), iteration,
            float(optimizer.get_loss_scale()), report_memory_flag, skipped_iter, grad_norm,
            is_first_iteration=is_first_iteration,
        )  # fmt: skip
        is_first_iteration = False
        if iteration % args.eval_interval == 0 and args.do_valid:
            timers("interval-time").stop()
            if should_disable_forward_pre_hook(args):
                disable_forward_pre_hook(model)
                pre_hook_enabled = False
            timers("eval-time", log_level=0).start(barrier=True)
            evaluate_and_print_results(
                f"iteration {iteration}", forward_step_func, valid_data_iterator, model, iteration,
                process_non_loss_data_func, config,
            )  # fmt: skip
            timers("eval-time").stop()
            if should_disable_forward_pre_hook(args):
                enable_forward_pre_hook(model)
                pre_hook_enabled = True
            timers("interval-time", log_level=0).start(barrier=True)
            if args.num_experts is not None:
                clear_aux_losses_tracker()
        if args.save and args.save_interval and iteration % args.save_interval == 0:
            save_checkpoint_and_time(
                iteration, model, optimizer, opt_param_scheduler, num_floating_point_operations_so_far,
                checkpointing_context, train_data_iterator=train_data_iterator,
            )  # fmt: skip
        elif args.save and args.non_persistent_save_interval and iteration % args.non_persistent_save_interval == 0:
            save_checkpoint_and_time(
                iteration, model, optimizer, opt_param_scheduler, num_floating_point_operations_so_far,
                checkpointing_context, non_persistent_ckpt=True, train_data_iterator=train_data_iterator,
            )  # fmt: skip
        if args.exit_interval and iteration % args.exit_interval == 0:
            print_datetime(f"exiting program at iteration {iteration}")
            should_exit = True
            break
    if pre_hook_enabled:
        disable_forward_pre_hook(model)
    maybe_finalize_async_save(blocking=True, terminate=True)
    if should_exit:
        sys.exit(exit_code)
    return iteration, num_floating_point_operations_so_far


def evaluate_and_print_results(
    prefix: str, forward_step_func: Any, data_iterator: Any, model: Any, iteration: int,
    process_non_loss_data_func: Any, config: Any, verbose: bool = False,
) -> None:  # fmt: skip
    losses = evaluate(forward_step_func, data_iterator, model, config)
    if mpu.is_pipeline_last_stage(ignore_virtual=True):
        print_rank_last(f"validation loss at {prefix}: {float(losses['lm loss']):.6f}")
