"""House rules for templates: cfn-lint loads every module of this folder.

They see a template after SAM's transform, so they also check the resources that SAM adds.
"""
