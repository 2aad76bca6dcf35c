"""The version of lipcert, in every certificate."""

VERSION = "0.1.0"
