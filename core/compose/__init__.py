"""From a command line to a judged plan, before anything heavy is loaded."""
