"""The result of a verification as text."""

from kiln.report.verify.run import Verification


def verification_text(verification: Verification) -> str:
    """Return a line for each damaged file, then the commands that make them anew."""
    if verification.is_intact:
        return f"{verification.run}: {verification.files:,} files are intact"
    lines = [f"{verification.run}: {len(verification.findings):,} damaged of {verification.files:,} files", ""]
    lines += [f"{finding.file}: {finding.problem}" for finding in verification.findings]
    lines += ["", f"To make them anew ({len(verification.files_to_delete):,} files are deleted first):", ""]
    lines += [f"  {command}" for command in verification.commands]
    return "\n".join(lines)
