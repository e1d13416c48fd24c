from hypothesis import HealthCheck, settings

settings.register_profile("busy machine", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")
