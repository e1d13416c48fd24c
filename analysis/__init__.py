"""Numbers: latencies, trials, Pareto fronts, ranks, figures and reports. No torch, no ray."""
