"""What all users of S3 share: botocore's errors as Kiln's, sessions and clients, and settings for other libraries."""
