#!/bin/sh
# What the cases of media errors start from: 80 durable blocks of seed 1.
. ./guest/lib.sh
format
daemon --nvme_devices="$data" --nvme_admit_hits=0
until_state serving
client put 1 80
all_of OK 80
daemon_stop
finish
