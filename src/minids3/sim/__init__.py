"""Arithmetic on a configuration: parameters, FLOPs, bytes, machines, and the Bill.

Plain Python on a ``ModelConfig``: no GPU, no model is ever built. What needs a machine's speed
takes it from ``hardware``, where every figure carries its source. Clusters: ``pipeline``
(schedules and their idle time), ``eplb`` (placing experts), ``serving`` (the roofline of a step),
``prices``.
"""

__all__: list[str] = []  # import from its modules
