"""The worker's side of failover: what a framework's hooks call. (Interface; see docs/protocol.md section 2.)"""
