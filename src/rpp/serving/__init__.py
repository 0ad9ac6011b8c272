"""The policy over HTTP, on LitServe: routes, the worker that holds the policy, feedback."""
