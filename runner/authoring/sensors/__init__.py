"""Sensors: tasks that wait for something. The ready-made ones wait in a scheduler and hold no slot."""

from runner.authoring.sensors.asset import AssetSensor
from runner.authoring.sensors.base import DeferrableSensor, Sensor
from runner.authoring.sensors.external_task import ExternalTaskSensor
from runner.authoring.sensors.file import FileSensor
from runner.authoring.sensors.http import HttpSensor
from runner.authoring.sensors.replication import ReplicationSensor
from runner.authoring.sensors.s3 import S3KeySensor
from runner.authoring.sensors.sql import SqlSensor
from runner.authoring.sensors.time import DeltaSensor, TimeSensor

__all__ = [
    "AssetSensor",
    "DeferrableSensor",
    "DeltaSensor",
    "ExternalTaskSensor",
    "FileSensor",
    "HttpSensor",
    "ReplicationSensor",
    "S3KeySensor",
    "Sensor",
    "SqlSensor",
    "TimeSensor",
]
