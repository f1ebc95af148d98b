"""House rules for templates: cfn-lint loads every module of this folder.

They see a template as it is after SAM's transform, so they also judge what SAM adds.
"""
