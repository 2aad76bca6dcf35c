"""Reports: every one a pure function of the certificate and its samples."""
