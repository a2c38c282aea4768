# A record of every instance that came, went or was about to go, as AWS saw it: what the nodes say about themselves is
# in the database. What cannot be recorded waits in a queue, and an alarm says so.

locals {
  name      = "sluice-${var.env}-lifecycle"
  group_arn = "arn:${data.aws_partition.this.partition}:logs:${var.region}:${var.account_id}:log-group:/aws/events/${local.name}"
  rules = {
    groups = {
      source      = ["aws.autoscaling"]
      detail      = { AutoScalingGroupName = [{ prefix = "sluice-${var.env}-" }] }
      detail-type = null
    }
    spot = {
      source      = ["aws.ec2"]
      detail      = null
      detail-type = ["EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation"]
    }
  }
}

data "aws_partition" "this" {}

resource "aws_cloudwatch_log_group" "this" {
  # checkov:skip=CKV_AWS_338:kept as long as the environment says
  # checkov:skip=CKV_AWS_158:encrypted by CloudWatch's own key: instance ids and times, no content
  name              = "/aws/events/${local.name}" # EventBridge may write below /aws/events only
  retention_in_days = var.retention_days
}

data "aws_iam_policy_document" "write" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${local.group_arn}:*"]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com", "delivery.logs.amazonaws.com"]
    }
  }
}

resource "aws_cloudwatch_log_resource_policy" "write" {
  policy_name     = local.name
  policy_document = data.aws_iam_policy_document.write.json
}

resource "aws_cloudwatch_event_rule" "this" {
  for_each      = local.rules
  name          = "${local.name}-${each.key}"
  description   = "Lifecycle of instances: ${each.key}"
  event_pattern = jsonencode({ for key, value in each.value : key => value if value != null })
}

resource "aws_sqs_queue" "dead_letters" {
  name                      = "${local.name}-dead-letters"
  message_retention_seconds = 1209600 # two weeks, the most there is
  kms_master_key_id         = var.kms_key_arn
}

data "aws_iam_policy_document" "dead_letters" {
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.dead_letters.arn]

    principals {
      type        = "Service"
      identifiers = ["events.amazonaws.com"]
    }

    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [for rule in aws_cloudwatch_event_rule.this : rule.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "dead_letters" {
  queue_url = aws_sqs_queue.dead_letters.id
  policy    = data.aws_iam_policy_document.dead_letters.json
}

resource "aws_cloudwatch_event_target" "record" {
  for_each  = aws_cloudwatch_event_rule.this
  rule      = each.value.name
  target_id = "record"
  arn       = aws_cloudwatch_log_group.this.arn

  dead_letter_config {
    arn = aws_sqs_queue.dead_letters.arn
  }

  depends_on = [aws_cloudwatch_log_resource_policy.write, aws_sqs_queue_policy.dead_letters]
}
