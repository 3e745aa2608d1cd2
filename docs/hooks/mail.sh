#!/bin/sh
# Mails what happened, through the machine's own sendmail. In configs/sdbatch.yaml:
#   hooks:
#     on_idle: ["/opt/sdbatch/hooks/mail.sh", "me@example.org"]
{
    printf 'To: %s\nSubject: sdbatch on %s\nContent-Type: application/json; charset=utf-8\n\n' "$1" "$(hostname)"
    cat
} | "${SENDMAIL:-/usr/sbin/sendmail}" -t
