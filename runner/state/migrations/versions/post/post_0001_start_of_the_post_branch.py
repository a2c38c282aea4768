"""start of the post branch"""

revision = "post_0001"
down_revision = None
branch_labels = ("post",)
depends_on = None


def upgrade() -> None:
    pass
