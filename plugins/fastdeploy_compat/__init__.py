"""FastDeploy's flags and variables: what each one is here."""
