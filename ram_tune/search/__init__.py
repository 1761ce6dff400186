"""Many runs become an answer."""
