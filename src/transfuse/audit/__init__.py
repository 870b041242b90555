"""Audits: questions that users ask of models, data or histories of their own, answered as findings."""

from transfuse.audit.finding import AuditReport, Finding
from transfuse.audit.transfer import transfer_audit

__all__ = ["AuditReport", "Finding", "transfer_audit"]
