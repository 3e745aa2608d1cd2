#!/bin/sh
# Posts what happened to a webhook. In configs/sdbatch.yaml:
#   hooks:
#     on_failed: ["/opt/sdbatch/hooks/webhook.sh", "https://chat.example/hooks/abc"]
exec curl --silent --show-error --fail --max-time 20 --header "Content-Type: application/json" --data-binary @- "$1"
