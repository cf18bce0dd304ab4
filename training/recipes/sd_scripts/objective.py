"""Arguments of the loss, the noise and the timesteps."""

from ...lora.metadata import OWN
from ..ledger import Ledger
from .own import is_own

FLOW = {
    "networks.lora_flux": ("sigma", 3.0, "sigma_scaled"),
    "networks.oft_flux": ("sigma", 3.0, "sigma_scaled"),
    "networks.lora_sd3": ("sigma", 1.0, "raw"),
    "networks.lora_hunyuan_image": ("sigma", 5.0, "raw"),
    "networks.lora_lumina": ("shift", 6.0, "raw"),
    "networks.lora_anima": ("sigmoid", 1.0, "raw"),
}
"""networks of flow models -> defaults of (timestep_sampling, discrete_flow_shift, model_prediction_type)"""
FLOW_KEYS = ("timestep_sampling", "discrete_flow_shift", "model_prediction_type", "weighting_scheme", "training_shift")


def carry_objective(book: Ledger) -> None:
    """Accounts for the keys of loss, noise and timesteps."""
    _loss_and_noise(book)
    if is_own(book):
        _own_timesteps(book)
    else:
        _flow(book)


def _loss_and_noise(book: Ledger) -> None:
    book.carry("min_snr_gamma", min_snr_gamma=book.number("min_snr_gamma"))
    book.carry("debiased_estimation_loss", debiased_estimation=book.flag("debiased_estimation_loss"))
    carry_loss(book)
    book.carry("noise_offset", noise_offset=book.number("noise_offset"))
    book.carry("ip_noise_gamma", ip_noise_gamma=book.number("ip_noise_gamma"))
    for name, of in (
        ("noise_offset_random_strength", "noise_offset"),
        ("ip_noise_gamma_random_strength", "ip_noise_gamma"),
    ):
        if book.number(of):
            book.miss(name, f"{of} would have been drawn anew for each step, from 0 to its value")
        book.ignore(name, f"{of} is off")
    iterations = book.whole("multires_noise_iterations")
    book.carry("multires_noise_iterations", multires_noise_iterations=iterations)
    if iterations:
        discount = book.number("multires_noise_discount", 0.3)
        book.carry("multires_noise_discount", multires_noise_discount=discount)
    book.ignore("multires_noise_discount", "multires_noise_iterations is off")
    book.carry("zero_terminal_snr", zero_terminal_snr=book.flag("zero_terminal_snr"))
    book.carry("min_timestep", min_timestep=book.whole("min_timestep"))
    book.carry("max_timestep", max_timestep=book.whole("max_timestep", 1000))


def carry_loss(book: Ledger) -> None:
    """Accounts for the keys of the loss of each element, which a relative of that trainer has too."""
    loss = book.text("loss_type", "l2")
    if loss not in ("l2", "huber", "smooth_l1"):
        book.replace("loss_type", "this loss is not offered", loss="l2")
    else:
        book.carry("loss_type", loss=loss)
    if loss in ("huber", "smooth_l1"):
        schedule = book.text("huber_schedule", "snr")
        book.carry("huber_schedule", huber_schedule=schedule)
        scale = book.number("huber_scale", 1.0)
        if schedule == "constant" and book.has("huber_scale"):
            book.carry(("huber_c", "huber_scale"), huber_c=book.number("huber_c", 0.1) * scale)
        else:
            book.carry("huber_c", huber_c=book.number("huber_c", 0.1))
            if schedule == "snr":
                book.ignore("huber_scale", "without effect where huber_schedule is snr")
            book.miss("huber_scale", "a factor on the point where the loss turns linear", 1)
    book.ignore(("huber_c", "huber_schedule", "huber_scale"), "for huber and smooth_l1 only")


def _own_timesteps(book: Ledger) -> None:
    note = "counted from noise to picture"
    book.carry("logit_mean", note, logit_mean=-book.number("logit_mean") or 0.0)
    book.carry("logit_std", logit_std=book.number("logit_std", 1.0))
    book.carry("discrete_flow_shift", timestep_shift=book.number("discrete_flow_shift"))
    book.ignore("timestep_sampling", f"{OWN}timestep_sampling counts")


def _flow(book: Ledger) -> None:
    """Accounts for the keys of a flow model's timestep density."""
    module = book.text("network_module")
    if module not in FLOW and not any(book.has(name) for name in FLOW_KEYS):
        book.ignore(("sigmoid_scale", "logit_mean", "logit_std", "mode_scale"), "for flow models only")
        return
    sampling_default, shift_default, prediction_default = FLOW.get(module, ("sigma", 3.0, "sigma_scaled"))
    is_sd3 = module == "networks.lora_sd3"
    shift_key = "training_shift" if is_sd3 else "discrete_flow_shift"
    sampling, shift = book.text("timestep_sampling", sampling_default), book.number(shift_key, shift_default)
    spread = book.number("sigmoid_scale", 1.0)
    if sampling == "sigma":
        _sigma_sampling(book, shift_key, shift)
    elif sampling in ("sigmoid", "shift", "flux_shift"):
        ours = {"sigmoid": "logit_normal", "shift": "shift", "flux_shift": "resolution_shift"}[sampling]
        book.carry("timestep_sampling", timestep_sampling=ours)
        book.carry("sigmoid_scale", logit_std=spread)
        if sampling == "shift":
            book.carry(shift_key, timestep_shift=shift)
    elif sampling == "uniform":
        book.carry("timestep_sampling", timestep_sampling="uniform")
    else:
        book.miss("timestep_sampling", "this density of timesteps is not offered; timestep_sampling stays auto")
    book.ignore((shift_key, "sigmoid_scale"), f"without effect where timestep_sampling is {sampling}")
    book.miss("discrete_flow_shift", "another shift than training_shift, which counts for SD3", 1, 3)
    scheme = book.text("weighting_scheme", "uniform")
    if scheme in ("sigma_sqrt", "cosmap"):
        book.miss("weighting_scheme", "a weight on the loss that goes with the noise")
    book.ignore(
        ("weighting_scheme", "logit_mean", "logit_std", "mode_scale"),
        f"without effect where it is {scheme} or {sampling}",
    )
    prediction = book.text("model_prediction_type", prediction_default)
    if prediction != "raw":
        lost = "the loss would have been weighted by sigma squared (error of the picture, not of the velocity)"
        book.note_absent("model_prediction_type", prediction, lost)
        book.miss("model_prediction_type", lost)
    book.ignore("model_prediction_type", "as here")


def _sigma_sampling(book: Ledger, shift_key: str, shift: float) -> None:
    """timestep_sampling=sigma: weighting_scheme draws an index into the sampler's shifted table, noise first."""
    scheme = book.text("weighting_scheme", "uniform")
    key = "timestep_sampling" if "timestep_sampling" in book else "weighting_scheme"
    if scheme == "logit_normal":
        book.carry(("weighting_scheme", "timestep_sampling"), timestep_sampling="shift")
        book.carry("logit_mean", "counted from noise to picture", logit_mean=-book.number("logit_mean") or 0.0)
        book.carry("logit_std", logit_std=book.number("logit_std", 1.0))
        book.carry(shift_key, timestep_shift=shift)
        return
    if scheme == "mode":
        book.miss(("weighting_scheme", "mode_scale"), "SD3's density with heavy tails; the density is uniform instead")
    book.carry(key, timestep_sampling="uniform")
    book.ignore("timestep_sampling", "with this weighting_scheme uniform")
    lost = "the uniform density would have been shifted towards noise; shift with a wide logit_std comes near"
    book.miss(shift_key, lost, 1)
    if shift != 1.0:
        book.note_absent(shift_key, shift, lost)
