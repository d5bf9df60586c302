from app.application.submissions.work import Made, Work
from app.domain.langgraph.submission_state import Outcomes
from app.domain.submission import Outcome


async def analyse(work: Work, came: Outcomes) -> Made:
    return Made(Outcome.missing("not there yet"))
